//! tmp
use store::DecisionView;
pub fn told(decisions: Vec<DecisionView>) -> Vec<DecisionView> {
    decisions
}
pub fn json(_t: &[DecisionView]) -> String {
    String::new()
}
pub fn text(t: &[DecisionView]) -> String {
    t.iter()
        .map(|d| {
            let dec: Option<crate::decide::Decision> = serde_json::from_str(&d.made.decision).ok();
            format!(
                "{} {} {:?}\n",
                d.made.at_ms,
                dec.map(|d| d.to_string()).unwrap_or_default(),
                d.outcome.as_ref().map(|o| &o.outcome)
            )
        })
        .collect()
}
