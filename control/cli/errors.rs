//! `errors`: the table of codes.
use clap::Args;
use serde::Serialize;
use switchback_control::{Code, Fault};

use crate::args::Global;
use crate::output;
use crate::output::table::{Column, Table};

/// Explain error codes.
///
/// Every refusal carries a symbolic code that stays the same over versions, so scripts may match on it; so does the
/// exit status, after sysexits.h.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback errors
  switchback errors TICKET_EXPIRED
  switchback errors --json | jq -r '.[] | select(.temporary).code'")]
pub(crate) struct ErrorsArgs {
    /// Only this code
    code: Option<String>,
}

#[derive(Serialize)]
struct Explained {
    code: Code,
    exit: u8,
    temporary: bool,
    remedy: &'static str,
}

impl From<Code> for Explained {
    fn from(code: Code) -> Self {
        let (exit, temporary) = (code.exit() as u8, code.is_temporary());
        Self { code, exit, temporary, remedy: code.remedy() }
    }
}

/// Runs `errors`.
pub(crate) fn run(args: &ErrorsArgs, global: &Global) -> Result<(), Fault> {
    match &args.code {
        Some(symbol) => explain(symbol, global),
        None => list(global),
    }
}

fn explain(symbol: &str, global: &Global) -> Result<(), Fault> {
    let code = Code::from_symbol(&symbol.to_ascii_uppercase()).ok_or_else(|| {
        Code::UsageInvalid
            .because(format!("no error code `{symbol}`; `switchback errors` lists all"))
    })?;
    let explained = Explained::from(code);
    if global.json {
        return output::json(&explained);
    }
    let again = if explained.temporary { "may help" } else { "does not help" };
    output::line(&format!(
        "{code}\n  {}\n  exit status {}; trying again {again}",
        explained.remedy, explained.exit
    ))
}

fn list(global: &Global) -> Result<(), Fault> {
    let all = Code::ALL.iter().map(|&code| Explained::from(code));
    if global.json {
        return output::json(&all.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        Column::Text("CODE"),
        Column::Figure("EXIT"),
        Column::Text("RETRY"),
        Column::Text("REMEDY"),
    ]);
    for explained in all {
        let retry = if explained.temporary { "yes" } else { "no" };
        let remedy = explained.remedy.to_owned();
        table.row([explained.code.to_string(), explained.exit.to_string(), retry.into(), remedy]);
    }
    table.print("")
}
