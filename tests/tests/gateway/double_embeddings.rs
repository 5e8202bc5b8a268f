//! The double of the providers: embeddings.

use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider, client};

async fn said(provider: &Provider, body: &Value) -> (u16, Value) {
    let sent = client().post(format!("{}/v1/embeddings", provider.base_url())).bearer_auth(PROVIDER_KEY);
    let answer = sent.body(body.to_string()).send().await.expect("an answer");
    (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.expect("whole")).expect("JSON"))
}

#[tokio::test]
async fn it_refuses_what_openai_refuses_of_embeddings_and_bills_the_rest_by_their_tokens() {
    let provider = Provider::start().await;
    let valid =
        json!({"model": "text-embedding-3-large", "input": ["x".repeat(4_000), "y"], "dimensions": 2});
    for (at, (field, value, status, expected)) in [
        ("question", json!(1), 400, "Unrecognized request argument supplied: question"),
        ("model", json!("text-embedding-9"), 404, "does not exist"),
        ("model", json!("gpt-6-sol"), 403, "not allowed to generate embeddings"),
        ("input", json!([]), 400, "'$.input' is invalid"),
        ("input", json!(["x", ""]), 400, "'$.input' is invalid"),
        ("input", json!(["x", 1]), 400, "'$.input' is invalid"),
        ("input", json!(vec!["x"; 2_049]), 400, "'$.input' is invalid"),
        ("input", json!("x".repeat(4 * 8_193)), 400, "maximum context length is 8192 tokens"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = valid.clone();
        body[field] = value;
        let (given, answer) = said(&provider, &body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!((given, message.contains(expected)), (status, true), "{field}: {answer}");
        assert_eq!(provider.findings().len(), at + 1);
    }
    assert_eq!(provider.bill_micros(), 0, "a refusal costs nothing");

    let (status, answer) = said(&provider, &valid).await;
    assert_eq!((status, answer["data"][1]["index"].as_u64()), (200, Some(1)), "{answer}");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 1_001, "total_tokens": 1_001}));
    // Lists of tokens, and the packed form that SDKs ask for.
    let tokens =
        json!({"model": "text-embedding-3-large", "input": [[1, 2, 3], [4]], "encoding_format": "base64"});
    let (status, answer) = said(&provider, &tokens).await;
    assert_eq!((status, &answer["data"][0]["embedding"]), (200, &json!("AACAPgAAAL8=")), "{answer}");
    // 1,001 and 4 tokens at 0.13 dollars a million, each call rounded up.
    assert_eq!(provider.bill_micros(), 131 + 1);
    assert!(provider.charged().iter().all(|call| call.whole && call.path == "/v1/embeddings"));
}
