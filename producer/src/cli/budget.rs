//! `producer budget`: limits on what model calls may cost, set while the fleet runs.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use job::{JobId, Name, SessionKey, Tenant, Usd, one_line, shown};
use service::{note, out};
use store::{AccountView, Budget, Period, SpendScope, Store};

use super::context::Context;
use super::operator::operator;
use super::status;

#[derive(Debug, Args)]
pub struct BudgetArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a limit, or change it
    ///
    /// Before a model call is sent, the most that it can cost is held under every limit that applies to it.
    /// A call that does not fit waits while others are under way, and stops its job when what is spent leaves
    /// no room. The lowest limit holds: those that are set here, and those that its worker, its agent and its
    /// job name. What was spent in the window before counts.
    ///
    /// Examples:
    ///   producer budget set 50 --per day                       # the whole fleet
    ///   producer budget set 5.00 --per day --agent coder
    ///   producer budget set 100 --per month --tenant acme
    ///   producer budget set 2 --session review-17 --tenant acme
    ///
    /// Exit codes: 0 it is set, 2 wrong arguments.
    #[command(verbatim_doc_comment)]
    Set {
        /// Dollars, such as 9.50
        #[arg(value_name = "USD", value_parser = parse_usd)]
        limit: Usd,
        #[command(flatten)]
        of: Of,
    },
    /// List limits, with what is spent and held of each now
    List {
        /// Accounts without a limit, too
        #[arg(long)]
        all: bool,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Remove a limit; the settings of workers, agents and jobs go on
    ///
    /// Exit codes: 0 it is removed, 1 there is none, 2 wrong arguments.
    Remove {
        #[command(flatten)]
        of: Of,
    },
    /// Open an account that is shut because a call cost more than was held for it
    ///
    /// First find out why: a price that is too low, or a request whose cost has no bound, will do it again.
    ///
    /// Exit codes: 0 it is open, 1 there is none, 2 wrong arguments.
    Reopen {
        /// As `producer budget list` shows it
        account: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Per {
    Day,
    Month,
}

/// What a limit is about: the whole fleet, unless one of these is given.
#[derive(Debug, Args)]
struct Of {
    /// Its window: a calendar day or month (for a session or a job it is all of its calls)
    #[arg(long, required_unless_present_any = ["session", "job"], conflicts_with_all = ["session", "job"])]
    per: Option<Per>,
    /// The calls of this agent, of all tenants
    #[arg(long, group = "what")]
    agent: Option<Name>,
    /// The calls of this user of the tenant: the job's `user_id`
    #[arg(long, group = "what", value_parser = job::parse_user_id)]
    user: Option<String>,
    /// The calls of this session of the tenant
    #[arg(long, group = "what")]
    session: Option<Name>,
    /// The calls of this job
    #[arg(long, group = "what", conflicts_with = "tenant")]
    job: Option<JobId>,
    /// The calls of this tenant; with --user or --session, whose they are (default)
    #[arg(long, conflicts_with = "agent")]
    tenant: Option<Tenant>,
}

impl Of {
    fn account(&self) -> (SpendScope, Period, String) {
        let period = match self.per {
            Some(Per::Day) => Period::Day,
            Some(Per::Month) => Period::Month,
            None => Period::Life,
        };
        let tenant = self.tenant.clone().unwrap_or_default();
        let (scope, name) = match (&self.agent, &self.user, &self.session, &self.job) {
            (Some(agent), ..) => (SpendScope::Agent, agent.to_string()),
            (_, Some(user), ..) => (SpendScope::User, format!("{tenant}/{user}")),
            (_, _, Some(session), _) => {
                (SpendScope::Session, SessionKey::new(&tenant, session).as_str().to_owned())
            }
            (_, _, _, Some(job)) => (SpendScope::Job, job.to_string()),
            _ if self.tenant.is_some() => (SpendScope::Tenant, tenant.to_string()),
            _ => (SpendScope::Fleet, String::new()),
        };
        (scope, period, name)
    }
}

pub fn parse_usd(text: &str) -> Result<Usd, String> {
    let dollars =
        text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    dollars.and_then(Usd::from_dollars).ok_or_else(|| "expected dollars, such as 9.50".to_owned())
}

/// Shows micro-dollars as dollars, exactly.
pub fn dollars(micros: i64) -> String {
    format!(
        "{}{}.{:06}",
        if micros < 0 { "-" } else { "" },
        micros.abs() / 1_000_000,
        micros.abs() % 1_000_000
    )
}

impl BudgetArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        let actor = operator();
        match self.command {
            Command::Set { limit, of } => {
                let (scope, period, name) = of.account();
                let budget = Budget { scope, period, name, limit };
                store.set_budget(&budget, &actor).await.context("setting a limit")?;
                out!("{} may spend {} dollars", described(&budget), dollars_of(limit));
                Ok(ExitCode::SUCCESS)
            }
            Command::List { all, json } => list(&store, all, json).await,
            Command::Remove { of } => {
                let (scope, period, name) = of.account();
                if store.remove_budget(scope, period, &name, &actor).await.context("removing a limit")? {
                    out!("the limit is removed");
                    return Ok(ExitCode::SUCCESS);
                }
                note!("there is no such limit; `producer budget list` shows all");
                Ok(ExitCode::FAILURE)
            }
            Command::Reopen { account } => {
                if store.reopen_account(&account, &actor).await.context("opening an account")? {
                    out!("{} is open", shown(&account));
                    return Ok(ExitCode::SUCCESS);
                }
                note!("there is no such account; `producer budget list` shows them");
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn dollars_of(amount: Usd) -> String {
    dollars(i64::try_from(amount.micros()).unwrap_or(i64::MAX))
}

fn described(budget: &Budget) -> String {
    let whose = match budget.scope {
        SpendScope::Fleet => "the fleet".to_owned(),
        scope => format!("{} {}", scope.as_str(), shown(&budget.name)),
    };
    match budget.period {
        Period::Life => whose,
        period => format!("{whose}, per {},", period.as_str()),
    }
}

async fn list(store: &Store, all: bool, json: bool) -> anyhow::Result<ExitCode> {
    let accounts = store.accounts(all).await.context("reading accounts")?;
    let budgets = store.budgets().await.context("reading limits")?;
    // A limit of a session or a job may have no account yet.
    let has_account = |budget: &&Budget| {
        let begins = format!("{}:{}:", budget.scope.as_str(), budget.period.as_str());
        let ends = format!(":{}", budget.name);
        accounts.iter().any(|it| it.account.starts_with(&begins) && it.account.ends_with(&ends))
    };
    let unused = budgets.iter().filter(|budget| !has_account(budget)).map(|budget| AccountView {
        account: format!("{}:{}::{}", budget.scope.as_str(), budget.period.as_str(), budget.name),
        budget_microusd: i64::try_from(budget.limit.micros()).ok(),
        bound_microusd: None,
        spent_microusd: 0,
        held_microusd: 0,
        overrun_microusd: 0,
        shut: false,
    });
    let rows: Vec<AccountView> = accounts.iter().cloned().chain(unused).collect();
    if json {
        for row in &rows {
            out!("{}", one_line(serde_json::to_string(row)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["account", "limit set here", "granted under", "spent", "held", "overrun", ""]);
    let maybe = |micros: Option<i64>| micros.filter(|micros| *micros > 0).map_or("-".to_owned(), dollars);
    for row in &rows {
        table.add_row([
            shown(&row.account).into_owned(),
            row.budget_microusd.map_or("-".to_owned(), dollars),
            maybe(row.bound_microusd),
            dollars(row.spent_microusd),
            dollars(row.held_microusd),
            dollars(row.overrun_microusd),
            if row.shut { "shut" } else { "" }.to_owned(),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}
