//! LM Studio's processes: which workers run, which models are at work, quit the app, open it.
//!
//! LM Studio runs one worker per loaded model, seen as
//! `<home>/.internal/utils/node -e … require(".../lib/llmworker.js")`. What cannot be told is not claimed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::Regex;
use serde::Serialize;
use serde_json::Value;
use time::PrimitiveDateTime;
use time::format_description::parse_borrowed;

use crate::command;

/// How long a program of the system is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name under which macOS knows the app.
const APP: &str = "LM Studio";
/// The script that every worker runs.
const WORKER_SCRIPT: &str = "/llmworker.js";
/// What runs it, below the home.
const WORKER_PROGRAM: &str = "/.internal/utils/node";
/// The start of the ps that was asked must be this close to now, in seconds, or its clock is not ours.
const CLOCK_TOLERANCE: u64 = 5;

/// One worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Its process id.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub started: u64,
}

/// The workers of the LM Studio that lives in `home`, by one call of `ps`; or why that cannot be told.
pub fn workers(home: &Path) -> Result<Vec<Worker>, String> {
    let mut ps = Command::new("ps");
    // Names and times in one language and one time zone. Only BSD's ps has a number for jobc: elsewhere, where LM Studio
    // has no MLX engine, ps refuses it or prints a dash, and nothing is claimed.
    ps.env("LC_ALL", "C").env("TZ", "UTC0");
    ps.args([
        "-axww", "-o", "pid=", "-o", "jobc=", "-o", "lstart=", "-o", "command=",
    ]);
    let finished =
        command::run(&mut ps, PATIENCE).map_err(|error| format!("ps cannot be run ({error})"))?;
    if !finished.status.success() {
        return Err("this system's ps does not tell".to_owned());
    }
    let rows = parse(&finished.stdout).ok_or("ps did not print a process table as macOS does")?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    // ps lists itself, and it was started just now: the proof that its clock and its time zone are read right.
    let is_itself =
        |row: &Row<'_>| row.pid == finished.pid && row.started.abs_diff(now) <= CLOCK_TOLERANCE;
    if !rows.iter().any(is_itself) {
        return Err("the times that ps printed cannot be trusted".to_owned());
    }
    of_home(&rows, &spellings(home))
}

/// One row of the process table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row<'t> {
    pid: u32,
    started: u64,
    command: &'t str,
}

/// Every row, or nothing where one of them is no row.
fn parse(table: &str) -> Option<Vec<Row<'_>>> {
    table
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(row)
        .collect()
}

// `  812     0 Mon Nov  3 07:41:27 2026     /path/of/node -e …`: a process id, BSD's job control count, when it was
// started, the command line.
static ROW: LazyLock<Result<Regex, regex::Error>> = LazyLock::new(|| {
    Regex::new(
        r"^ *([0-9]+) +-?[0-9]+ +([A-Z][a-z]{2}) +([A-Z][a-z]{2}) +([0-9]+) +([0-9:]+) +([0-9]+) +(.*)$",
    )
});

fn row(line: &str) -> Option<Row<'_>> {
    let (_, [pid, weekday, month, day, clock, year, command]) =
        ROW.as_ref().ok()?.captures(line)?.extract();
    let started = seconds(&format!("{weekday} {month} {day} {clock} {year}"))?;
    Some(Row {
        pid: pid.parse().ok()?,
        started,
        command: command.trim(),
    })
}

/// `Mon Nov 3 07:41:27 2026`, in UTC, as seconds since 1970.
fn seconds(text: &str) -> Option<u64> {
    let format = "[weekday repr:short] [month repr:short] [day padding:none] [hour]:[minute]:[second] [year]";
    let time = PrimitiveDateTime::parse(text, &parse_borrowed::<2>(format).ok()?).ok()?;
    time.assume_utc().unix_timestamp().try_into().ok()
}

/// The workers whose program is in the home, however that is spelt.
///
/// A worker of another home is none of ours. One whose home cannot be seen makes the answer unknown.
fn of_home(rows: &[Row<'_>], homes: &[String]) -> Result<Vec<Worker>, String> {
    let mut workers = Vec::new();
    for row in rows.iter().filter(|row| mentions_script(row.command)) {
        let runs = |home: &String| {
            let program = row
                .command
                .strip_prefix(home.as_str())
                .and_then(|rest| rest.strip_prefix(WORKER_PROGRAM));
            program.is_some_and(|rest| rest.starts_with(char::is_whitespace))
        };
        if homes.iter().any(runs) {
            workers.push(Worker {
                pid: row.pid,
                started: row.started,
            });
        } else if row.command.contains(&format!("/{APP}.app/"))
            && !row.command.contains(WORKER_PROGRAM)
        {
            return Err(format!(
                "process {} may be a worker, but not of a form that lmpatch knows",
                row.pid
            ));
        }
    }
    Ok(workers)
}

/// Whether a command line names the worker's script itself, and not something whose name only begins like it.
fn mentions_script(command: &str) -> bool {
    let ends = |rest: &str| {
        !rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/'))
    };
    command
        .match_indices(WORKER_SCRIPT)
        .any(|(at, script)| command.get(at + script.len()..).is_some_and(ends))
}

/// The home as it was named and with its links resolved.
fn spellings(home: &Path) -> Vec<String> {
    let named = std::path::absolute(home).ok();
    let real = fs::canonicalize(home).ok();
    let text = |path: std::path::PathBuf| {
        path.to_str()
            .map(|text| text.trim_end_matches('/').to_owned())
    };
    named.into_iter().chain(real).filter_map(text).collect()
}

/// The instances that LM Studio's own `lms ps --json` says are at work; none where it cannot be asked.
#[must_use]
pub fn at_work(home: &Path) -> Vec<String> {
    let lms = home.join("bin/lms");
    let finished = command::run(Command::new(lms).args(["ps", "--json"]), PATIENCE).ok();
    let rows = finished.filter(|finished| finished.status.success());
    let rows = rows.and_then(|finished| serde_json::from_str::<Value>(&finished.stdout).ok());
    let id_if_busy = |row: &Value| {
        let is_idle = row.get("status")?.as_str()? == "idle"
            && row.get("queued").and_then(Value::as_u64).unwrap_or(0) == 0;
        let id = row.get("identifier")?.as_str()?;
        (!is_idle).then(|| id.to_owned())
    };
    rows.as_ref()
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(id_if_busy)
        .collect()
}

/// Quits the app, as its menu does; waits until it has.
pub fn quit(patience: Duration) -> Result<(), String> {
    call(
        Command::new("osascript").args(["-e", &format!("quit app \"{APP}\"")]),
        patience,
    )
}

/// Opens the app.
pub fn open(patience: Duration) -> Result<(), String> {
    call(Command::new("open").args(["-a", APP]), patience)
}

/// Runs a program for what it does; or says why it did not.
pub fn call(program: &mut Command, patience: Duration) -> Result<(), String> {
    let name = program.get_program().to_string_lossy().into_owned();
    let finished = command::run(program, patience)
        .map_err(|error| format!("{name} cannot be run ({error})"))?;
    if finished.status.success() {
        return Ok(());
    }
    Err(format!(
        "{name} failed ({}): {}",
        finished.status, finished.stderr
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "/Users/me/.lmstudio/.internal/utils/node";

    fn found(table: &str) -> Result<Vec<Worker>, String> {
        of_home(
            &parse(table).ok_or("no table")?,
            &["/Users/me/.lmstudio".to_owned()],
        )
    }

    #[test]
    fn the_day_may_have_one_digit_or_two() {
        assert_eq!(seconds("Thu Jan 1 00:00:00 1970"), Some(0));
        assert_eq!(seconds("Mon Nov 23 07:41:27 2026"), Some(1_795_419_687));
        for wrong in [
            "",
            "Mon Nov 23 07:41 2026",
            "Mo 23 Nov 07:41:27 2026",
            "Mon Nov 31 07:41:27 2026",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn workers_are_those_of_the_home_and_no_look_alikes() {
        let table = format!(
            "    1   0 Thu Jan  1 00:00:01 1970     /sbin/launchd\n  \
               12  -1 Thu Jan  1 00:00:12 1970     {NODE} -e require(\"/opt/x/lib/llmworker.js\")\n\
             90013   0 Thu Jan  1 00:00:13 1970     {NODE} /Users/me/.lmstudio/a b/llmworker.js --flag\n  \
               14   0 Thu Jan  1 00:00:14 1970     {NODE} /opt/x/other.js\n  \
               15   0 Thu Jan  1 00:00:15 1970     /Users/you/.lmstudio/.internal/utils/node /x/llmworker.js\n  \
               16   0 Thu Jan  1 00:00:16 1970     /Users/me/.lmstudio-old/.internal/utils/node /x/llmworker.js\n  \
               17   0 Thu Jan  1 00:00:17 1970     {NODE} /x/llmworker.js.map\n  \
               18   0 Thu Jan  1 00:00:18 1970     vim /x/llmworker.js\n  \
               19   0 Thu Jan  1 00:00:19 1970     grep {NODE} /x/llmworker.js\n  \
               20   0 Thu Jan  1 00:00:20 1970     {NODE}-helper /x/llmworker.js\n  \
               21   0 Thu Jan  1 00:00:21 1970     {NODE} /x/my-llmworker.js\n  \
               22   0 Thu Jan  1 00:00:22 1970     (node)\n"
        );
        assert_eq!(
            found(&table),
            Ok(vec![
                Worker {
                    pid: 12,
                    started: 12
                },
                Worker {
                    pid: 90013,
                    started: 13
                }
            ])
        );
    }

    #[test]
    fn what_is_no_table_is_no_answer() {
        for garbage in [
            "PID LSTART COMMAND\n",
            "12 Thu Jan  1 00:00:12 1970 /sbin/launchd\n",
            "x 0 Thu Jan  1 00:00:12 1970 /sbin/launchd\n",
            "12 0 Do 1. Jan 00:00:12 1970 /sbin/launchd\n",
            "12 0 Thu Jan  1 00:00:12 1970 a\n<html>\n",
            "-1 0 Thu Jan  1 00:00:12 1970 a\n",
        ] {
            assert_eq!(parse(garbage), None, "{garbage}");
        }
        let unknown = "12 0 Thu Jan  1 00:00:12 1970 /Applications/LM Studio.app/Contents/MacOS/x /y/llmworker.js\n";
        assert!(found(unknown).is_err());
    }
}
