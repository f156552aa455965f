//! A Kubernetes API server in memory: enough of it to run whole passes, count their writes, and cut them off.
//!
//! Server-side apply is taken as a merge by key, which is what it comes to with a single field manager.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// The server; clones share their objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Objects by path, `/apis/apps/v1/namespaces/ns/statefulsets/demo`.
    objects: BTreeMap<String, Value>,
    version: u64,
    writes: Vec<String>,
    writes_left: Option<usize>,
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let query = parts.uri.query().unwrap_or_default().to_owned();
                let (status, answer) = server.answer(&parts.method, parts.uri.path(), &query, body);
                let response =
                    Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(response.expect("a status and a body make a response"))
            }
        });
        Client::new(service, "ns")
    }

    /// Puts an object there, as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.lock().store(path, object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    pub(crate) fn remove(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    /// Writes so far, as `METHOD path`, Events included; forgets them.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().writes)
    }

    /// Lets this many writes pass and fails all later ones; `None` lets all pass.
    pub(crate) fn allow_writes(&self, count: Option<usize>) {
        self.lock().writes_left = count;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the lock is held")
    }

    fn answer(&self, method: &Method, path: &str, query: &str, body: Value) -> (StatusCode, Value) {
        let mut state = self.lock();
        if method != Method::GET {
            match &mut state.writes_left {
                Some(0) => return failure(StatusCode::INTERNAL_SERVER_ERROR, "cut off"),
                Some(left) => *left -= 1,
                None => {}
            }
            state.writes.push(format!("{method} {path}"));
        }
        let (target, is_status) = match path.strip_suffix("/status") {
            Some(target) => (target, true),
            None => (path, false),
        };
        match *method {
            Method::GET => match state.objects.get(target) {
                Some(found) => (StatusCode::OK, found.clone()),
                None if is_collection(target) => (StatusCode::OK, state.list(target, query)),
                None => failure(StatusCode::NOT_FOUND, "not found"),
            },
            Method::PATCH => state.patch(target, is_status, body),
            Method::POST => (StatusCode::CREATED, body),
            Method::DELETE => match state.objects.remove(target) {
                Some(_) => (StatusCode::OK, json!({"kind": "Status", "status": "Success"})),
                None => failure(StatusCode::NOT_FOUND, "not found"),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "not supported"),
        }
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = self.version.to_string().into();
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{}", self.version).into();
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = jiff::Timestamp::now().to_string().into();
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn patch(&mut self, path: &str, is_status: bool, body: Value) -> (StatusCode, Value) {
        let found = self.objects.get(path).cloned();
        if found.is_none() && is_status {
            return failure(StatusCode::NOT_FOUND, "not found");
        }
        let mut object = found.unwrap_or_else(|| json!({"metadata": {}}));
        let expected = &body["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != object["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "the object has been modified");
        }
        if is_status {
            // All of the status is ours, so what is left out goes.
            object["status"] = body["status"].clone();
        } else {
            merge(&mut object, body);
        }
        (StatusCode::OK, self.store(path, object))
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let selector: Vec<(String, String)> = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("labelSelector="))
            .map(|text| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/"))
            .into_iter()
            .flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
            .collect();
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(found, _)| found.rsplit_once('/').is_some_and(|(parent, _)| parent == path))
            .map(|(_, object)| object)
            .filter(|object| selector.iter().all(|(key, value)| object["metadata"]["labels"][key] == *value))
            .cloned()
            .collect();
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})
    }
}

fn is_collection(path: &str) -> bool {
    ["services", "pods", "persistentvolumeclaims"].iter().any(|plural| path.ends_with(&format!("/{plural}")))
}

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

fn failure(status: StatusCode, message: &str) -> (StatusCode, Value) {
    let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
                      "reason": reason, "code": status.as_u16()});
    (status, body)
}
