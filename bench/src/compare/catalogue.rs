//! The built-in scenarios, and choosing among them or a user's own files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::scenario::Scenario;
use crate::load::workload::Workload;

/// `bench/scenarios/*.toml` by name, in the order of reports.
const BUILT_IN: [(&str, &str); 14] = [
    ("bulk1", include_str!("../../scenarios/bulk1.toml")),
    ("bulk8", include_str!("../../scenarios/bulk8.toml")),
    ("bulk64", include_str!("../../scenarios/bulk64.toml")),
    ("bulk8-both-ways", include_str!("../../scenarios/bulk8-both-ways.toml")),
    ("rr64-1", include_str!("../../scenarios/rr64-1.toml")),
    ("rr64-100", include_str!("../../scenarios/rr64-100.toml")),
    ("rr1400-1", include_str!("../../scenarios/rr1400-1.toml")),
    ("rr1400-100", include_str!("../../scenarios/rr1400-100.toml")),
    ("closed100", include_str!("../../scenarios/closed100.toml")),
    ("mixed", include_str!("../../scenarios/mixed.toml")),
    ("churn", include_str!("../../scenarios/churn.toml")),
    ("short-flows", include_str!("../../scenarios/short-flows.toml")),
    ("idle", include_str!("../../scenarios/idle.toml")),
    ("slow-reader", include_str!("../../scenarios/slow-reader.toml")),
];

/// The scenarios of a run: all built-in ones unless there are `chosen` ones, fitted to the machine
/// as [`fit`] does.
///
/// # Errors
/// Two of one name, or one that fits no way.
pub(crate) fn plan(chosen: &[Scenario], files: u64, quick: bool) -> Result<Vec<Scenario>> {
    let mut plan = chosen.to_vec();
    if plan.is_empty() {
        plan = BUILT_IN.iter().map(|(_, text)| Scenario::parse(text)).collect::<Result<_>>()?;
    }
    for index in 0..plan.len() {
        let name = &plan[index].name;
        ensure!(
            plan[..index].iter().all(|earlier| earlier.name != *name),
            "two scenarios are called {name}"
        );
        fit(&mut plan[index], files, quick)?;
    }
    Ok(plan)
}

/// A built-in scenario by its name, or the one in a file: what ends in `.toml` or contains a `/`.
///
/// Goals may name the peers in `peers`.
///
/// # Errors
/// No such scenario or file, or a file that is not a scenario.
pub(crate) fn find(wanted: &str, peers: &[String]) -> Result<Scenario> {
    let built_in = BUILT_IN.iter().find(|(name, _)| *name == wanted);
    let scenario = match built_in {
        Some((_, text)) => Scenario::parse(text),
        None if wanted.contains('/') || is_toml(wanted) => fs::read_to_string(wanted)
            .with_context(|| format!("reading the scenario {wanted}"))
            .and_then(|text| Scenario::parse(&text)),
        None => bail!(
            "no scenario {wanted}; there are {}, and files of your own (PATH.toml)",
            BUILT_IN.map(|(name, _)| name).join(", ")
        ),
    };
    let scenario = scenario.with_context(|| format!("in the scenario {wanted}"))?;
    for name in scenario.goals.iter().flat_map(|goal| goal.peers.iter().chain(&goal.relative_to)) {
        ensure!(
            peers.contains(name),
            "a goal of the scenario {wanted} names the peer {name}; there are {}",
            peers.join(", ")
        );
    }
    Ok(scenario)
}

fn is_toml(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "toml")
}

/// Files that stay open in this process beside the sessions: terminal, sources, pipes to peers.
const FILES_SPARE: u64 = 512;

/// Both ends of a session are in this process, and a gateway holds as many.
const FILES_PER_SESSION: u64 = 2;

/// Idle sessions of a quick run: enough that a session's share stands out from the page size.
const QUICK_SESSIONS: usize = 500;

/// Lowers idle sessions to what `files` open files (and a `quick` run) permit, with a note.
///
/// # Errors
/// The limit does not even permit one session.
fn fit(scenario: &mut Scenario, files: u64, quick: bool) -> Result<()> {
    let Workload::Idle { sessions } = &mut scenario.workload else { return Ok(()) };
    let wanted = *sessions;
    let possible = files.saturating_sub(FILES_SPARE) / FILES_PER_SESSION;
    ensure!(possible > 0, "a limit of {files} open files is too low for idle sessions (ulimit -n)");
    if quick && *sessions > QUICK_SESSIONS {
        *sessions = QUICK_SESSIONS;
        scenario.notes.push(format!("{QUICK_SESSIONS} sessions instead of {wanted}: --quick"));
    }
    if *sessions as u64 > possible {
        *sessions = usize::try_from(possible)?;
        scenario.notes.push(format!(
            "{possible} sessions instead of {wanted}: the limit of open files is {files} \
             (ulimit -n)"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::catalogue::names;

    #[test]
    fn every_built_in_scenario_is_valid_and_named_like_its_file() {
        for (name, _) in BUILT_IN {
            assert_eq!(find(name, &names()).unwrap().name, name);
        }
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap();
        assert_eq!(files.count(), BUILT_IN.len(), "every file is built in");
        assert_eq!(plan(&[], 20_000, false).unwrap().len(), BUILT_IN.len());
    }

    #[test]
    fn what_does_not_exist_is_an_error_that_lists_what_does() {
        let message = |wanted: &str| format!("{:#}", find(wanted, &names()).unwrap_err());
        assert!(message("bulk9").contains("bulk8-both-ways"));
        assert!(message("/nonexistent.toml").contains("/nonexistent.toml"));
        let error = find("bulk8", &["direct".to_owned()]).unwrap_err();
        assert!(format!("{error:#}").contains("there are direct"), "{error:#}");
    }

    #[test]
    fn two_scenarios_of_one_name_are_refused() {
        let idle = find("idle", &names()).unwrap();
        let error = plan(&[idle.clone(), idle], 20_000, false).unwrap_err();
        assert!(format!("{error:#}").contains("idle"));
    }

    #[test]
    fn idle_sessions_fit_the_limit_of_open_files_and_say_so() {
        let idle = || find("idle", &names()).unwrap();
        let (mut full, mut quick, mut tight) = (idle(), idle(), idle());
        fit(&mut full, 20_000, false).unwrap();
        assert_eq!((full.workload, full.notes.len()), (Workload::Idle { sessions: 9000 }, 0));
        fit(&mut quick, 20_000, true).unwrap();
        assert_eq!((quick.workload, quick.notes.len()), (Workload::Idle { sessions: 500 }, 1));
        fit(&mut tight, 1024, false).unwrap();
        assert_eq!(tight.workload, Workload::Idle { sessions: 256 });
        assert!(tight.notes[0].contains("1024"), "{:?}", tight.notes);
        assert!(fit(&mut tight, 100, false).is_err());
    }
}
