//! A server over streamable HTTP. It is asked at the address in the file alone: no redirect and no proxy leads elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest};
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::Sse;

use super::CALL_KEY;

/// How often a stream that broke is asked to go on.
const RECONNECTS: usize = 5;
/// How many calls run at once.
const AT_ONCE: usize = 64;

type Result<T> = std::result::Result<T, StreamableHttpError<reqwest::Error>>;
type Headers = HashMap<HeaderName, HeaderValue>;

/// Makes the transport to a server.
pub fn transport(
    client: &reqwest::Client,
    url: &str,
    headers: &Headers,
) -> StreamableHttpClientTransport<Keyed> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .custom_headers(headers.clone())
        .max_concurrent_requests(AT_ONCE)
        // A call of a session that the server has lost may have taken effect: who calls decides.
        .reinit_on_expired_session(false);
    let mut reconnects = ExponentialBackoff::default();
    reconnects.max_times = Some(RECONNECTS);
    reconnects.max_delay = Some(Duration::from_secs(10));
    config.retry_config = Arc::new(reconnects);
    StreamableHttpClientTransport::with_client(Keyed(client.clone()), config)
}

/// The client that gives each call of a tool its key as `Idempotency-Key`.
#[derive(Clone)]
pub struct Keyed(reqwest::Client);

fn with_key(mut headers: Headers, message: &ClientJsonRpcMessage) -> Headers {
    if let ClientJsonRpcMessage::Request(request) = message
        && let ClientRequest::CallToolRequest(call) = &request.request
        && let Some(key) = call.params.meta.as_ref().and_then(|meta| meta.get(CALL_KEY)?.as_str())
        && let Ok(key) = HeaderValue::from_str(key)
    {
        headers.insert(HeaderName::from_static("idempotency-key"), key);
    }
    headers
}

impl StreamableHttpClient for Keyed {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse> {
        let headers = with_key(headers, &message);
        self.0.post_message(uri, message, session_id, auth_header, headers).await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
        max: usize,
    ) -> Result<StreamableHttpPostResponse> {
        let headers = with_key(headers, &message);
        self.0.post_message_with_max_sse_event_size(uri, message, session_id, auth_header, headers, max).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse> {
        let headers = with_key(headers, &message);
        self.0.post_message_with_response_limits(uri, message, session_id, auth_header, headers, limits).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<()> {
        self.0.delete_session(uri, session_id, auth_header, headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        headers: Headers,
    ) -> Result<BoxStream<'static, std::result::Result<Sse, SseError>>> {
        self.0.get_stream(uri, session_id, last_event_id, auth_header, headers).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        headers: Headers,
        max: usize,
    ) -> Result<BoxStream<'static, std::result::Result<Sse, SseError>>> {
        self.0
            .get_stream_with_max_sse_event_size(uri, session_id, last_event_id, auth_header, headers, max)
            .await
    }
}
