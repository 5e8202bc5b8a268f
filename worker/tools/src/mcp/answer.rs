//! What a server answered, as an output.

use base64::prelude::{BASE64_STANDARD, Engine};
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use tokio::io::AsyncWriteExt;

use crate::output::Collected;
use crate::redaction::Redaction;
use crate::text;
use crate::tool::{Call, Content, Ended, Output};
use crate::workspace::Workspace;

/// The types of pictures that every provider takes.
const PICTURES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
/// How many pictures of an answer are shown.
const SHOWN: usize = 8;
/// How large they may be together, in base64. A checkpoint has at most 4 MiB.
const SHOWN_BYTES: usize = 2 * 1024 * 1024;
/// How many pieces of an answer are kept in files.
const KEPT: usize = 32;

/// Makes the output of a call.
pub async fn output(
    result: CallToolResult,
    call: &Call<'_>,
    (workspace, redaction): (&Workspace, &Redaction),
    max_output_bytes: usize,
) -> Output {
    let is_error = result.is_error == Some(true);
    let mut text = Vec::new();
    let mut pictures = Pictures::default();
    let mut kept = Kept { workspace, call: call.key.as_str(), count: 0 };
    let structured = result.structured_content.filter(|_| result.content.is_empty());
    for block in result.content {
        match block {
            ContentBlock::Text(block) => text.push(block.text),
            ContentBlock::Image(image) if pictures.take(&image.mime_type, &image.data) => {}
            ContentBlock::Image(image) => {
                text.push(kept.keep("picture", &image.mime_type, &image.data).await)
            }
            ContentBlock::Audio(audio) => text.push(kept.keep("sound", &audio.mime_type, &audio.data).await),
            ContentBlock::Resource(embedded) => text.push(match embedded.resource {
                ResourceContents::TextResourceContents { uri, text, .. } => format!("[{uri}]\n{text}"),
                ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                    let kind = mime_type.unwrap_or_default();
                    format!("[{uri}]\n{}", kept.keep("file", &kind, &blob).await)
                }
                _ => "(a resource of an unknown kind is left out)".to_owned(),
            }),
            ContentBlock::ResourceLink(link) => text.push(format!("[{}] {}", link.uri, link.name)),
            _ => text.push("(a piece of an unknown kind is left out)".to_owned()),
        }
    }
    text.extend(structured.map(|value| value.to_string()));
    let mut collected =
        Collected::new((workspace, redaction), call.key.as_str().to_owned(), max_output_bytes);
    for (at, piece) in text.iter().enumerate() {
        let before: &[u8] = if at == 0 { b"" } else { b"\n" };
        collected.push(before).await;
        collected.push(piece.as_bytes()).await;
    }
    let mut content = Vec::new();
    if collected.total() > 0 || pictures.0.is_empty() {
        let text = collected.finish(max_output_bytes).await;
        content.push(Content::Text(if text.is_empty() { "(no output)".to_owned() } else { text }));
    }
    content.extend(pictures.0);
    Output { content, is_error, ended: if is_error { Ended::Failed } else { Ended::Done } }
}

/// The pictures that are shown.
#[derive(Default)]
struct Pictures(Vec<Content>);

impl Pictures {
    /// Takes one if it can be shown.
    fn take(&mut self, media_type: &str, data: &str) -> bool {
        let size = |content: &Content| match content {
            Content::Image { data, .. } => data.len(),
            Content::Text(_) => 0,
        };
        let bytes: usize = self.0.iter().map(size).sum();
        let fits = self.0.len() < SHOWN && bytes + data.len() <= SHOWN_BYTES;
        let shown = fits && PICTURES.contains(&media_type) && is_base64(data);
        if shown {
            self.0.push(Content::Image { media_type: media_type.to_owned(), data: data.to_owned() });
        }
        shown
    }
}

fn is_base64(data: &str) -> bool {
    !data.is_empty() && BASE64_STANDARD.decode(data).is_ok()
}

/// Files for what is not shown.
struct Kept<'a> {
    workspace: &'a Workspace,
    call: &'a str,
    count: usize,
}

impl Kept<'_> {
    /// Keeps bytes in a file, and returns what stands in their place.
    async fn keep(&mut self, what: &str, media_type: &str, data: &str) -> String {
        self.count += 1;
        let media_type = text::clipped(media_type, 100);
        let of = format!("a {what} of the type {media_type:?}");
        let Ok(bytes) = BASE64_STANDARD.decode(data) else {
            return format!("({of} is left out: its data is no base64)");
        };
        if self.count > KEPT {
            return format!("({of} is left out: there were {KEPT} before it)");
        }
        let kept = async {
            let (file, path) = self.workspace.new_output(&format!("{}-{}", self.call, self.count))?;
            let mut file = tokio::fs::File::from_std(file);
            file.write_all(&bytes).await?;
            file.flush().await?;
            Ok::<_, std::io::Error>(path)
        };
        match kept.await {
            Ok(path) => format!("({of}, {} bytes, is in the file {path})", bytes.len()),
            Err(error) => format!("({of} could not be kept in a file: {error})"),
        }
    }
}
