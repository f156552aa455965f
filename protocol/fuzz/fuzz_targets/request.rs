//! Any bytes as a request: an error at worst. What decodes must be encodable again, to something that decodes to the same.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millrace_protocol::frame::RequestFrame;
use millrace_protocol::{Decoder, Encoder, Request, RequestVisitor, messages};

struct Decode(RequestFrame);

impl RequestVisitor for Decode {
    fn request<R: Request>(&mut self) {
        let version = self.0.version;
        if R::KEY != self.0.key {
            return;
        }
        let Ok(request) = self.0.clone().decode::<R>() else { return };
        let mut e = Encoder::new();
        // A duplicate tag can be read but not written.
        if request.encode(&mut e, version).is_err() {
            return;
        }
        let again = R::decode(&mut Decoder::new(e.into_bytes()), version).expect("it was just written");
        // A float that is no number differs from itself.
        assert_eq!(format!("{request:?}"), format!("{again:?}"));
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = RequestFrame::parse(Bytes::copy_from_slice(data)) {
        messages::visit_requests(&mut Decode(request));
    }
});
