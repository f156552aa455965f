//! Leader election by Lease: of several replicas of the operator one works.
//!
//! The rules are those of Kubernetes' own components. A holder renews every [`RETRY`]; one that could not for
//! [`RENEW_DEADLINE`] has lost and must end its process, which is before others may take over after [`LEASE_DURATION`].
//! Whether a Lease has expired is judged by how long it has stood unchanged on our own clock, never by comparing clocks
//! of two machines. Every write is conditional on the version that was read, so two cannot both succeed.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio::time::Instant;

/// How long a Lease is honoured after it was last renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a holder may fail to renew before it gives up. Shorter than [`LEASE_DURATION`].
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two attempts.
pub const RETRY: Duration = Duration::from_secs(2);

/// Where the Lease is kept.
pub trait LeaseStore: Send + Sync {
    /// The Lease, if there is one.
    fn get(&self) -> impl Future<Output = Result<Option<Lease>, kube::Error>> + Send;
    /// Creates it; fails where it exists.
    fn create(&self, lease: Lease) -> impl Future<Output = Result<Lease, kube::Error>> + Send;
    /// Replaces it; fails where it has changed since `lease.metadata.resource_version`.
    fn replace(&self, lease: Lease) -> impl Future<Output = Result<Lease, kube::Error>> + Send;
}

/// The Lease on the API server.
#[derive(Clone, Debug)]
pub struct ApiLease {
    api: Api<Lease>,
    name: String,
}

impl ApiLease {
    /// The Lease `name` behind `api`.
    pub fn new(api: Api<Lease>, name: impl Into<String>) -> Self {
        Self { api, name: name.into() }
    }
}

impl LeaseStore for ApiLease {
    async fn get(&self) -> Result<Option<Lease>, kube::Error> {
        self.api.get_opt(&self.name).await
    }

    async fn create(&self, mut lease: Lease) -> Result<Lease, kube::Error> {
        lease.metadata.name = Some(self.name.clone());
        self.api.create(&PostParams::default(), &lease).await
    }

    async fn replace(&self, lease: Lease) -> Result<Lease, kube::Error> {
        self.api.replace(&self.name, &PostParams::default(), &lease).await
    }
}

/// Takes part in the election under one identity.
#[derive(Debug)]
pub struct Election<S> {
    store: S,
    identity: String,
    /// The Lease as last read, and since when it has stood like that.
    observed: Option<(Lease, Instant)>,
}

/// What an attempt has to do.
#[derive(Debug, PartialEq)]
enum Attempt {
    Create(LeaseSpec),
    Replace(LeaseSpec),
    /// Somebody else holds it.
    Wait,
}

impl<S: LeaseStore> Election<S> {
    /// Takes part as `identity`, which must differ from that of every other participant.
    pub fn new(store: S, identity: impl Into<String>) -> Self {
        Self { store, identity: identity.into(), observed: None }
    }

    /// Resolves once the Lease is ours. May be dropped at any time.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(error, "cannot acquire the lease"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the Lease; resolves only when it is lost, with the reason. The process must end then.
    pub async fn hold(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            match self.attempt().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return "another process holds the lease".to_owned(),
                Err(error) if renewed.elapsed() >= RENEW_DEADLINE => {
                    return format!("the lease could not be renewed: {error}");
                }
                Err(error) => tracing::warn!(error, "cannot renew the lease"),
            }
        }
    }

    /// Gives the Lease up, so that another participant need not wait for it to expire.
    pub async fn release(&mut self) {
        let Some((mut lease, _)) = self.observed.take().filter(|(lease, _)| holder(lease) == self.identity)
        else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        match tokio::time::timeout(RETRY, self.store.replace(lease)).await {
            Ok(Ok(_)) => tracing::info!("released the lease"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot release the lease; it will expire"),
            Err(_) => tracing::warn!("cannot release the lease in time; it will expire"),
        }
    }

    /// One attempt to acquire or renew; whether the Lease is ours after it.
    async fn attempt(&mut self) -> Result<bool, String> {
        // Bounded, as a request that hangs would otherwise outlive the deadline unnoticed.
        tokio::time::timeout(RENEW_DEADLINE / 3, self.try_once())
            .await
            .map_err(|_| "the API server does not answer".to_owned())?
            .map_err(|error| error.to_string())
    }

    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let found = self.store.get().await?;
        self.observe(found);
        let written = match decide(&self.identity, self.observed.as_ref(), Instant::now(), Timestamp::now()) {
            Attempt::Wait => return Ok(false),
            Attempt::Create(spec) => {
                self.store.create(Lease { metadata: ObjectMeta::default(), spec: Some(spec) }).await
            }
            Attempt::Replace(spec) => {
                let (lease, _) = self.observed.clone().expect("only what was observed is replaced");
                self.store.replace(Lease { spec: Some(spec), ..lease }).await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                Ok(true)
            }
            // Somebody was faster. Not an error, but whose Lease it is will be seen next time.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(self.observed.as_ref().is_some_and(|(lease, _)| holder(lease) == self.identity))
            }
            Err(error) => Err(error),
        }
    }

    fn observe(&mut self, found: Option<Lease>) {
        self.observed = found.map(|lease| {
            let since = match &self.observed {
                Some((seen, since)) if seen.spec == lease.spec => *since,
                _ => Instant::now(),
            };
            (lease, since)
        });
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn decide(identity: &str, observed: Option<&(Lease, Instant)>, now: Instant, wall: Timestamp) -> Attempt {
    let ours = |acquired: MicroTime, transitions: i32| LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(
            i32::try_from(LEASE_DURATION.as_secs()).expect("seconds of a lease fit"),
        ),
        acquire_time: Some(acquired),
        renew_time: Some(MicroTime(wall)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let Some((lease, since)) = observed else { return Attempt::Create(ours(MicroTime(wall), 0)) };
    let spec = lease.spec.clone().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or(0);
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    if holder(lease) == identity {
        return Attempt::Replace(ours(spec.acquire_time.unwrap_or(MicroTime(wall)), transitions));
    }
    let expired = now.duration_since(*since) >= Duration::from_secs(duration);
    if holder(lease).is_empty() || expired {
        return Attempt::Replace(ours(MicroTime(wall), transitions.saturating_add(1)));
    }
    Attempt::Wait
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::core::Status;

    use super::*;

    /// A Lease in memory, with versions; may be cut off.
    #[derive(Clone, Debug, Default)]
    struct Memory {
        lease: Arc<Mutex<Option<Lease>>>,
        down: Arc<Mutex<bool>>,
    }

    fn error(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, ..Status::default() }))
    }

    impl Memory {
        fn put(&self, mut lease: Lease) -> Lease {
            let mut slot = self.lease.lock().unwrap();
            let version = slot.as_ref().and_then(|l| l.metadata.resource_version.clone());
            let next = version.map_or(1, |version| version.parse::<u64>().unwrap() + 1);
            lease.metadata.resource_version = Some(next.to_string());
            *slot = Some(lease.clone());
            lease
        }

        fn check(&self) -> Result<(), kube::Error> {
            if *self.down.lock().unwrap() { Err(error(503)) } else { Ok(()) }
        }
    }

    impl LeaseStore for Memory {
        async fn get(&self) -> Result<Option<Lease>, kube::Error> {
            self.check()?;
            Ok(self.lease.lock().unwrap().clone())
        }

        async fn create(&self, lease: Lease) -> Result<Lease, kube::Error> {
            self.check()?;
            if self.lease.lock().unwrap().is_some() {
                return Err(error(409));
            }
            Ok(self.put(lease))
        }

        async fn replace(&self, lease: Lease) -> Result<Lease, kube::Error> {
            self.check()?;
            let version = self.lease.lock().unwrap().as_ref().unwrap().metadata.resource_version.clone();
            if lease.metadata.resource_version != version {
                return Err(error(409));
            }
            Ok(self.put(lease))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_participant_waits_until_the_first_has_been_silent_for_the_lease() {
        let memory = Memory::default();
        Election::new(memory.clone(), "a").acquire().await;
        let started = Instant::now();
        Election::new(memory, "b").acquire().await;
        assert!(started.elapsed() >= LEASE_DURATION, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_is_taken_over_at_once() {
        let memory = Memory::default();
        let mut first = Election::new(memory.clone(), "a");
        first.acquire().await;
        first.release().await;
        let started = Instant::now();
        Election::new(memory, "b").acquire().await;
        assert!(started.elapsed() < RETRY, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_renews_keeps_others_out() {
        let memory = Memory::default();
        let mut first = Election::new(memory.clone(), "a");
        first.acquire().await;
        let mut second = Election::new(memory, "b");
        tokio::select! {
            reason = first.hold() => panic!("lost: {reason}"),
            () = second.acquire() => panic!("two holders"),
            () = tokio::time::sleep(LEASE_DURATION * 10) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_is_cut_off_gives_up_before_others_may_take_over() {
        let memory = Memory::default();
        let mut first = Election::new(memory.clone(), "a");
        first.acquire().await;
        let started = Instant::now();
        *memory.down.lock().unwrap() = true;
        first.hold().await;
        assert!(
            started.elapsed() >= RENEW_DEADLINE && started.elapsed() < LEASE_DURATION,
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_sees_another_name_has_lost() {
        let memory = Memory::default();
        let mut first = Election::new(memory.clone(), "a");
        first.acquire().await;
        let mut stolen = memory.lease.lock().unwrap().clone().unwrap();
        stolen.spec.as_mut().unwrap().holder_identity = Some("b".into());
        memory.put(stolen);
        assert_eq!(first.hold().await, "another process holds the lease");
    }
}
