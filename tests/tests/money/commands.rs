//! `producer spend` and `producer budget`: what they print adds up to what the ledger counts, and what is wrong is named.

use std::collections::BTreeMap;

use job::{JobSpec, Tenant};
use serde_json::Value;
use store::{CallOutcome, CallTokens, NewCall, Period, Reserved, SpendScope};
use tests::{Fleet, Ran, Runner, job};

use crate::caller::{Caller, cost, limit, unknown, usd};

/// What a spreadsheet would take for a formula, and what it would split.
const ODD_USER: &str = "=1+1, \"she\" said";

struct Books {
    fleet: Fleet,
    runner: Runner,
}

impl Books {
    async fn new() -> Books {
        let fleet = Fleet::new().await;
        let runner = Runner::register(&fleet.store).await;
        Books { fleet, runner }
    }

    /// Begins a job of a tenant.
    async fn caller(&self, tenant: &str, agent: &str, limits: &[store::Limit]) -> Caller {
        let tenant: Tenant = tenant.parse().expect("a tenant");
        let spec = JobSpec { tenant, ..job(&format!("s-{agent}"), agent, Value::Null) };
        self.fleet.store.accept(std::slice::from_ref(&spec)).await.expect("accepted");
        Caller::of(&self.runner, spec, limits).await
    }

    /// Calls of two tenants, three agents, two models and three users, in every state.
    async fn filled() -> Books {
        let books = Books::new().await;
        for (at, (tenant, agent)) in
            [("default", "coder"), ("acme", "coder"), ("acme", "-writer")].into_iter().enumerate()
        {
            let caller = books.caller(tenant, agent, &[]).await;
            let call = |model: &str, user: Option<&str>, micros: u64| NewCall {
                model: model.to_owned(),
                user_id: user.map(str::to_owned),
                ..caller.call(micros)
            };
            let tokens = |n| CallTokens { input: n, cache_read: 2 * n, cache_write: 3 * n, output: 4 * n };
            let paid = |micros, n| CallOutcome::Settled {
                cost: usd(micros),
                tokens: tokens(n),
                answered_by: "m".to_owned(),
            };
            let base = 1_000_000 * (at as u64 + 1);
            for (call, outcome) in [
                (call("large", Some(ODD_USER), 2 * base), Some(paid(base + 1, 10 + at as u64))),
                (call("large", None, 2 * base), Some(paid(base, 20))),
                (call("small", Some("ann"), 700), Some(unknown())),
                (call("small", Some("ann"), 600), Some(CallOutcome::Free)),
                (call("small", None, 500 + at as u64), None),
            ] {
                assert_eq!(caller.reserve(&call).await, Reserved::Granted);
                if let Some(outcome) = outcome {
                    caller.settle(&call, outcome).await;
                }
            }
        }
        books
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        self.fleet.producer(arguments).await
    }

    async fn ok(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran
    }

    /// What the ledger counts, by these columns.
    async fn counted(&self, columns: &str) -> BTreeMap<String, String> {
        let key = if columns.is_empty() { "''" } else { columns };
        let sql = format!(
            "SELECT key || '|' || concat_ws(' ', count(*), sum(cost_microusd),
                    coalesce(sum(cost_microusd) FILTER (WHERE state = 'unknown'), 0),
                    coalesce(sum(reserved_microusd) FILTER (WHERE state = 'held'), 0),
                    sum(input_tokens), sum(cache_read_tokens), sum(cache_write_tokens), sum(output_tokens))
               FROM (SELECT ({key}) COLLATE \"C\" AS key, c.* FROM harness_calls c) of_key GROUP BY key"
        );
        let rows = self.fleet.database.texts(&sql).await;
        let split = |row: &String| {
            let (key, sums) = row.rsplit_once('|').expect("a key and its sums");
            (key.to_owned(), sums.to_owned())
        };
        rows.iter().map(split).collect()
    }
}

const SUMS: [&str; 8] = [
    "calls",
    "cost_microusd",
    "unknown_microusd",
    "held_microusd",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
];

#[tokio::test]
async fn what_spend_prints_adds_up_to_what_the_ledger_counts() {
    let books = Books::filled().await;
    for (by, columns) in [
        ("day", "to_char(day, 'YYYY-MM-DD')"),
        ("agent", "agent_id"),
        ("user", "coalesce(user_id, '')"),
        ("tenant", "tenant"),
        ("model", "model"),
        ("job", "job_id::text"),
        ("tenant,model", "tenant || '/' || model"),
        ("user,agent,tenant", "coalesce(user_id, '') || '/' || agent_id || '/' || tenant"),
    ] {
        let rows = books.ok(&["spend", "--by", by, "--json"]).await.json();
        let printed: BTreeMap<String, String> = rows
            .iter()
            .map(|row| {
                let of: Vec<&str> = by.split(',').map(|by| row[by].as_str().expect("a text")).collect();
                let sums: Vec<String> =
                    SUMS.iter().map(|sum| row[*sum].as_i64().expect("a sum").to_string()).collect();
                (of.join("/"), sums.join(" "))
            })
            .collect();
        assert_eq!(rows.len(), printed.len(), "each has one row: {rows:?}");
        assert_eq!(printed, books.counted(columns).await, "{by}");
    }
    let total = books.counted("").await.remove("").expect("a sum");
    assert_eq!(total, "15 12002103 2100 1503 93 186 279 372");
}

#[tokio::test]
async fn a_table_and_comma_separated_values_show_the_same_sums_in_dollars() {
    let books = Books::filled().await;
    let csv = books.ok(&["spend", "--by", "user,model", "--csv"]).await.out;
    assert_eq!(
        csv,
        "user,model,calls,cost_usd,unknown_usd,held_usd,input_tokens,cache_read_tokens,cache_write_tokens,output_tokens\n\
         ,large,3,6.000000,0.000000,0.000000,60,120,180,240\n\
         ,small,3,0.000000,0.000000,0.001503,0,0,0,0\n\
         \"'=1+1, \"\"she\"\" said\",large,3,6.000003,0.000000,0.000000,33,66,99,132\n\
         ann,small,6,0.002100,0.002100,0.000000,0,0,0,0\n"
    );
    let csv = books.ok(&["spend", "--by", "agent", "--csv"]).await.out;
    assert!(csv.contains("\n'-writer,5,6.000701,"), "no spreadsheet reads a formula: {csv}");
    let table = books.ok(&["spend", "--by", "tenant,agent"]).await.out;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = table.lines().map(words).collect();
    for line in [
        "tenant agent calls cost $ unknown $ held $ input cache read cache write output",
        "acme -writer 5 6.000701 0.000700 0.000502 32 64 96 128",
        "acme coder 5 4.000701 0.000700 0.000501 31 62 93 124",
        "default coder 5 2.000701 0.000700 0.000500 30 60 90 120",
    ] {
        assert!(lines.iter().any(|shown| shown == line), "{line} is not in {table}");
    }
    let today = books.ok(&["spend", "--csv"]).await.out;
    assert!(today.contains(",15,12.002103,0.002100,0.001503,93,186,279,372\n"), "today, by day: {today}");
}

#[tokio::test]
async fn a_call_that_is_settled_by_an_operator_is_known_from_then_on() {
    let books = Books::filled().await;
    let calls = books.ok(&["spend", "unknown", "--json"]).await.json();
    assert_eq!(calls.len(), 3, "{calls:?}");
    let call = calls[0]["call_id"].as_str().expect("an id");
    books.ok(&["spend", "settle", call, "--cost-usd", "0.000123"]).await;
    let again = books.run(&["spend", "settle", call, "--cost-usd", "9"]).await;
    assert_eq!(again.code, 1, "{again:?}");
    let total = books.ok(&["spend", "--json"]).await.json();
    assert_eq!(
        (&total[0]["cost_microusd"], &total[0]["unknown_microusd"]),
        (&12_001_526.into(), &1_400.into())
    );
    assert_eq!(books.counted("").await[""].split(' ').nth(1), Some("12001526"));
    books.fleet.database.audited().await;
}

/// The accounts that `producer budget list` prints: limit, spent, held and whether it is shut, by scope, period and name.
fn accounts(ran: &Ran) -> BTreeMap<String, (Option<i64>, i64, i64, bool)> {
    let read = |row: Value| {
        let mut parts: Vec<&str> = row["account"].as_str().expect("an account").splitn(4, ':').collect();
        parts.remove(2);
        let number = |name: &str| row[name].as_i64().unwrap_or_default();
        let budget = row["budget_microusd"].as_i64();
        let is_shut = row["shut"].as_bool().expect("a flag");
        (parts.join(":"), (budget, number("spent_microusd"), number("held_microusd"), is_shut))
    };
    ran.json().into_iter().map(read).collect()
}

#[tokio::test]
async fn limits_are_set_listed_with_what_the_ledger_counts_and_removed() {
    let books = Books::filled().await;
    let job = books
        .fleet
        .database
        .texts("SELECT job_id::text FROM harness_jobs WHERE tenant = 'default'")
        .await
        .remove(0);
    let of_job = ["--job", job.as_str()];
    let all: [(&[&str], String, (i64, i64)); 9] = [
        (&["--per", "day"], "fleet:day:".to_owned(), (12_002_103, 1_503)),
        (&["--per", "month"], "fleet:month:".to_owned(), (12_002_103, 1_503)),
        (&["--per", "day", "--tenant", "acme"], "tenant:day:acme".to_owned(), (10_001_402, 1_003)),
        (&["--per", "day", "--agent", "coder"], "agent:day:coder".to_owned(), (6_001_402, 1_001)),
        (&["--per", "month", "--agent=-writer"], "agent:month:-writer".to_owned(), (6_000_701, 502)),
        (&["--per", "day", "--user", "ann"], "user:day:default/ann".to_owned(), (700, 0)),
        (&["--per", "day", "--user", "ann", "--tenant", "acme"], "user:day:acme/ann".to_owned(), (1_400, 0)),
        (
            &["--session", "s-coder", "--tenant", "acme"],
            "session:life:~acme/s-coder".to_owned(),
            (4_000_701, 501),
        ),
        (&of_job, format!("job:life:{job}"), (2_000_701, 500)),
    ];
    for (at, (of, ..)) in all.iter().enumerate() {
        let amount = format!("{}.50", 20 + at);
        let ran = books.ok(&[&["budget", "set", amount.as_str()], *of].concat()).await;
        assert!(ran.out.contains(&format!("may spend {amount}0000 dollars")), "{ran:?}");
    }
    let listed = accounts(&books.ok(&["budget", "list", "--json"]).await);
    assert_eq!(listed.len(), all.len(), "{listed:?}");
    for (at, (_, name, (spent, held))) in all.iter().enumerate() {
        let limit = 20_500_000 + 1_000_000 * at as i64;
        assert_eq!(listed.get(name), Some(&(Some(limit), *spent, *held, false)), "{name}: {listed:?}");
    }
    let table = books.ok(&["budget", "list"]).await.out;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = table.lines().map(words).find(|line| line.starts_with("tenant:day:")).expect("its line");
    assert!(shown.ends_with(":acme 22.500000 - 10.001402 0.001003 0.000000"), "{table}");

    // A limit is changed, and one that is removed does not count any more.
    books.ok(&["budget", "set", "3", "--per", "day"]).await;
    let caller = books.caller("default", "third", &[]).await;
    let refused = caller.reserve(&caller.call(1)).await;
    assert!(
        matches!(&refused, Reserved::Spent { account, limit, .. } if account.starts_with("fleet:day:") && *limit == usd(3_000_000)),
        "{refused:?}"
    );
    books.ok(&["budget", "remove", "--per", "day"]).await;
    caller.granted(1).await;
    let listed = accounts(&books.ok(&["budget", "list", "--json"]).await);
    assert!(!listed.contains_key("fleet:day:") && listed.len() == all.len() - 1, "{listed:?}");
    let every = accounts(&books.ok(&["budget", "list", "--all", "--json"]).await);
    assert_eq!(every["fleet:day:"], (None, 12_002_103, 1_504, false), "{every:?}");
    let again = books.run(&["budget", "remove", "--per", "day"]).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.err.contains("there is no such limit"), "{again:?}");
    let log = books.ok(&["log", "--json"]).await.json();
    let acts = |act: &str| log.iter().filter(|row| row["act"] == act).count();
    assert_eq!((acts("budget_set"), acts("budget_removed")), (all.len() + 1, 1), "{log:?}");
    books.fleet.database.audited().await;
}

#[tokio::test]
async fn an_account_that_an_overrun_has_shut_is_listed_so_and_grants_again_once_it_is_reopened() {
    let books = Books::new().await;
    let caller = books.caller("default", "coder", &[limit(SpendScope::Fleet, Period::Day, 1_000)]).await;
    caller.settle(&caller.granted(10).await, cost(25)).await;
    let listed = books.ok(&["budget", "list", "--json"]).await;
    let row = listed.json().remove(0);
    let account = row["account"].as_str().expect("an account").to_owned();
    assert_eq!((&row["overrun_microusd"], &row["spent_microusd"]), (&15.into(), &25.into()), "{row}");
    assert!(accounts(&listed)["fleet:day:"].3, "{row}");
    assert!(matches!(caller.reserve(&caller.call(1)).await, Reserved::Spent { shut: true, .. }));
    books.ok(&["budget", "reopen", &account]).await;
    assert!(!accounts(&books.ok(&["budget", "list", "--json"]).await)["fleet:day:"].3);
    caller.granted(1).await;
    let unknown = books.run(&["budget", "reopen", "fleet:day:1999-01-01:"]).await;
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.err.contains("there is no such account"), "{unknown:?}");
    let logged =
        "SELECT count(*) FROM harness_audit_log WHERE act = 'account_reopened' AND detail ? 'account'";
    assert_eq!(books.fleet.database.count(logged).await, 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_named_and_changes_nothing() {
    let books = Books::new().await;
    for (arguments, named) in [
        (&["spend", "--by", "week"][..], "--by"),
        (&["spend", "--by", "day,,agent"], "--by"),
        (&["spend", "--days", "0"], "--days"),
        (&["spend", "--days", "10001"], "--days"),
        (&["spend", "--csv", "--json"], "--json"),
        (&["spend", "settle", "nothing", "--cost-usd", "1"], "<CALL>"),
        (&["spend", "settle", "01931a5e-0000-7000-8000-000000000000"], "--cost-usd"),
        (&["spend", "settle", "01931a5e-0000-7000-8000-000000000000", "--cost-usd", "1e3"], "--cost-usd"),
        (&["budget", "set", "ten", "--per", "day"], "<USD>"),
        (&["budget", "set", "NaN", "--per", "day"], "<USD>"),
        (&["budget", "set", "5"], "--per"),
        (&["budget", "set", "5", "--per", "week"], "--per"),
        (&["budget", "set", "5", "--per", "day", "--session", "s"], "--session"),
        (&["budget", "set", "5", "--per", "day", "--agent", "a b"], "--agent"),
        (&["budget", "set", "5", "--per", "day", "--agent", "a", "--tenant", "acme"], "--tenant"),
        (&["budget", "set", "5", "--per", "day", "--agent", "a", "--user", "u"], "--user"),
        (&["budget", "set", "5", "--job", "7"], "--job"),
        (&["budget", "remove"], "--per"),
        (&["budget", "reopen"], "<ACCOUNT>"),
    ] {
        let ran = books.run(arguments).await;
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(named), "{named} is not in {arguments:?}: {ran:?}");
    }
    let rows = "SELECT (SELECT count(*) FROM harness_budgets) + (SELECT count(*) FROM harness_audit_log)";
    assert_eq!(books.fleet.database.count(rows).await, 0);
}
