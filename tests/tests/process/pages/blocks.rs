//! A page in Markdown by its parts: prose, code within it, and fenced blocks.

use super::Page;

/// A part of a page.
pub enum Part<'p> {
    /// A line outside of the blocks.
    Prose { line: usize, text: &'p str },
    /// A fenced block.
    Block(Block<'p>),
}

/// A fenced block.
pub struct Block<'p> {
    /// Where it begins.
    pub line: usize,
    /// The word after its fence.
    pub language: &'p str,
    pub text: String,
    /// The paragraph before it.
    pub before: String,
}

/// The parts of a page, in order.
pub fn parts(page: &Page) -> Vec<Part<'_>> {
    let (mut parts, mut paragraph) = (Vec::new(), String::new());
    let mut lines = page.text.lines().enumerate();
    while let Some((at, text)) = lines.next() {
        let Some(language) = text.trim_start().strip_prefix("```") else {
            if !text.trim().is_empty() {
                let begins =
                    at == 0 || page.text.lines().nth(at - 1).is_some_and(|before| before.trim().is_empty());
                if begins {
                    paragraph.clear();
                }
                paragraph = format!("{paragraph}{text}\n");
            }
            parts.push(Part::Prose { line: at + 1, text });
            continue;
        };
        let body: Vec<&str> = lines
            .by_ref()
            .map(|(_, text)| text)
            .take_while(|text| !text.trim_start().starts_with("```"))
            .collect();
        let before = std::mem::take(&mut paragraph);
        let text = body.iter().map(|line| format!("{line}\n")).collect();
        parts.push(Part::Block(Block { line: at + 1, language: language.trim(), text, before }));
    }
    parts
}

/// The fenced blocks of a page.
pub fn blocks(page: &Page) -> Vec<Block<'_>> {
    let block = |part| match part {
        Part::Block(block) => Some(block),
        Part::Prose { .. } => None,
    };
    parts(page).into_iter().filter_map(block).collect()
}

/// What is within backticks in a line of prose.
pub fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A line of prose without what is within backticks.
pub fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join("``")
}
