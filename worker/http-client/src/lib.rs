//! The HTTP client that calls a provider, a service or a server of tools: one attempt is one request, to the address
//! that was named. This crate does not know what is asked, or who answers.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use reqwest::{Body, Client};
use rustls::ClientConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that repeats nothing, follows nothing and asks no proxy. A request that is repeated beneath its
/// reservation would be billed twice under one hold.
pub fn build(tls: ClientConfig) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| error.to_string())
}

/// Makes a body that is dropped as soon as it is sent. The client keeps any other until the answer begins, to repeat it: a model
/// may take a minute until then.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    Body::wrap(Full::new(bytes.into()))
}

/// Returns what lies beneath an error, without the address, which may hold a secret.
pub fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let said = cause.to_string();
    match error.url() {
        Some(url) => said.replace(url.as_str(), "its address"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::crypto::ring;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    /// Says when it is dropped.
    struct Kept(Vec<u8>, Option<oneshot::Sender<()>>);

    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = self.1.take().map(|dropped| dropped.send(()));
        }
    }

    fn client() -> Client {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap();
        build(tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth()).unwrap()
    }

    #[tokio::test]
    async fn a_body_that_was_sent_is_not_kept_until_the_answer() {
        const BYTES: usize = 1 << 16;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dropped, is_dropped) = oneshot::channel();
        let body = body(Bytes::from_owner(Kept(vec![b'x'; BYTES], Some(dropped))));
        let server = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while read.iter().filter(|byte| **byte == b'x').count() < BYTES {
                connection.read_buf(&mut read).await.unwrap();
            }
            let head = String::from_utf8_lossy(&read[..300]).to_lowercase();
            assert!(head.contains(&format!("content-length: {BYTES}")), "{head}");
            timeout(Duration::from_secs(10), is_dropped).await.expect("it is dropped").unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let asked = client().post(format!("http://{address}/")).body(body).send();
        let (answer, ()) = tokio::join!(asked, server);
        assert!(answer.unwrap().status().is_success());
    }
}
