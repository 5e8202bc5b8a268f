//! Schemas of inputs that providers refuse: with one of them no call of the agent would pass.

use tools::Toolbox;

use crate::support::{Bench, build};

const KEYWORDS: [(&str, &str); 6] = [
    ("allOf", "[{}]"),
    ("anyOf", "[{\"required\": [\"a\"]}, {\"required\": [\"b\"]}]"),
    ("const", "{\"a\": 1}"),
    ("enum", "[{\"a\": 1}]"),
    ("not", "{\"required\": [\"c\"]}"),
    ("oneOf", "[{\"required\": [\"a\"]}]"),
];

/// Lists a tool for each keyword, and one that has them all further down.
const SERVER: &str = "
schemas = json.loads(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    answer = {
        'initialize': {'protocolVersion': '2025-06-18', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 's', 'version': '1'}},
        'tools/list': {'tools': [{'name': name, 'inputSchema': schema} for name, schema in schemas.items()]},
    }.get(message.get('method'))
    if answer:
        print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': answer}), flush=True)
";

fn schema(keyword: &str, value: &str) -> String {
    format!("{{\"type\": \"object\", \"properties\": {{\"a\": {{}}}}, \"{keyword}\": {value}}}")
}

#[tokio::test]
async fn a_servers_tool_with_a_schema_that_providers_refuse_is_left_out_and_named() {
    let bench = Bench::new();
    let below: Vec<String> = KEYWORDS.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    let below = format!("{{\"type\": \"object\", \"properties\": {{\"below\": {{{}}}}}}}", below.join(", "));
    let mut schemas: Vec<String> =
        KEYWORDS.iter().map(|(name, value)| format!("\"{name}\": {}", schema(name, value))).collect();
    schemas.push(format!("\"below\": {below}"));
    let program = bench.python("server", SERVER);
    let table = format!("[mcp.s]\ncommand = ['{program}', '''{{{}}}''']", schemas.join(", "));
    let toolset = build(toml::from_str(&table).unwrap()).unwrap();
    let (tools, left_out) = toolset.check(&bench.place()).await.remove(0).found.unwrap();
    assert_eq!(tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["s__below"]);
    assert_eq!(left_out.len(), KEYWORDS.len(), "{left_out:?}");
    for ((keyword, _), said) in KEYWORDS.iter().zip(&left_out) {
        let expected = format!("its tool \"{keyword}\" is left out: its input schema: got `{keyword}`");
        assert!(said.starts_with(&expected) && said.contains("top level"), "{said}");
    }
    let toolbox = Toolbox::open(&toolset, &bench.place()).await.unwrap();
    assert_eq!(toolbox.tools().len(), 1);
    toolbox.close().await;
}

#[test]
fn a_commands_own_schema_that_providers_refuse_is_wrong() {
    for (keyword, value) in KEYWORDS {
        let bench = Bench::new();
        bench.put("schema.json", schema(keyword, value));
        let file = bench.workspace().join("schema.json");
        let table = format!(
            "[tools.run]\ncommand = ['true']\ndescription = 'Runs.'\ninput_schema = '{}'",
            file.display()
        );
        let errors = build(toml::from_str(&table).unwrap()).err().expect(keyword);
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(error.setting, "tools.run.input_schema");
        assert!(error.problem.contains(&format!("got `{keyword}`")), "{error:?}");
    }
}
