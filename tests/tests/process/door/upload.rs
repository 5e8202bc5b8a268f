//! A caller that sends a batch piece by piece.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tests::Api;

/// A batch under way, as lines.
pub struct Upload(TcpStream);

impl Upload {
    /// Sends the head of a request with this key.
    pub fn begin(api: &Api, key: Option<&str>) -> Upload {
        let address = api.base().strip_prefix("http://").expect("an address");
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a bound");
        let mut upload = Upload(stream);
        let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let head = "POST /v1/jobs/batch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n";
        upload.write(&format!("{head}{key}\r\n"));
        upload
    }

    /// Sends a piece of the body.
    pub fn send(&mut self, piece: &str) {
        self.write(&format!("{:x}\r\n{piece}\r\n", piece.len()));
    }

    /// Ends the body, and returns the answer.
    pub fn end(mut self) -> (u16, String, Value) {
        self.write("0\r\n\r\n");
        self.answer()
    }

    /// The status, the head and the body of the answer.
    pub fn answer(mut self) -> (u16, String, Value) {
        let mut answer = Vec::new();
        let read = self.0.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let _ = self.0.shutdown(Shutdown::Both);
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {read:?}: {answer}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        // The answer is one chunk, or has a length.
        let body = body.find('{').zip(body.rfind('}')).map(|(from, to)| &body[from..=to]).unwrap_or_default();
        (status, head.to_ascii_lowercase(), serde_json::from_str(body).expect("JSON"))
    }

    fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("written");
    }
}
