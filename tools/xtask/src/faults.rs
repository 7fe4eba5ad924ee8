//! `cargo xtask faults`: one write or sync of a server under load fails, or the server dies in it.
//!
//! For each case the server must end by itself and say why (or die of the signal), must not sync again, and after a
//! restart all that was acknowledged must be there: on the files as they are, on the files as a power cut would have
//! left them ([`Shadow`]), and after a second life on the former that ends in a power cut.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use forebay_checker::format::Moment;
use forebay_testkit::torture::figures::Figures;
use forebay_testkit::torture::history::History;
use forebay_testkit::torture::run::{judge, last_life, options};
use forebay_testkit::torture::{Crew, create_queues};
use forebay_testkit::{Server, ServerOptions};

use crate::shadow::Shadow;
use crate::shell::{have, skip};

/// How long the fault may take to come.
const FAULT_WITHIN: Duration = Duration::from_secs(30);
const SECOND_LIFE: Duration = Duration::from_millis(500);
const SEED: u64 = 11;
/// Number of the life after the one with the fault, and a second one.
const LAST_LIFE: u64 = 2;

/// What fails: the n-th such call of a thread.
struct Case {
    call: &'static str,
    fault: &'static str,
    nth: u32,
}

const fn case(call: &'static str, fault: &'static str, nth: u32) -> Case {
    Case { call, fault, nth }
}

/// Starting takes five calls of each kind at most in one thread.
const CASES: [Case; 11] = [
    case("fdatasync", "error=EIO", 7),
    case("fdatasync", "error=EIO", 40),
    case("fdatasync", "error=EIO", 150),
    case("fdatasync", "error=ENOSPC", 60),
    case("pwritev", "error=EIO", 8),
    case("pwritev", "error=EIO", 90),
    case("pwritev", "error=ENOSPC", 70),
    case("fdatasync", "signal=KILL", 9),
    case("fdatasync", "signal=KILL", 80),
    case("pwritev", "signal=KILL", 10),
    case("pwritev", "signal=KILL", 110),
];

pub fn run(only: &str) -> Result<(), String> {
    if let Err(why) = have("strace", "strace") {
        return skip(&why);
    }
    let runtime = crate::runtime()?;
    let mut failures = 0;
    let mut count = 0;
    for case in &CASES {
        let name = format!("{}:{}:when={}", case.call, case.fault, case.nth);
        if !name.contains(only) {
            continue;
        }
        count += 1;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        match runtime.block_on(Trial { dir: dir.path(), name: &name, case }.run()) {
            Ok(seen) => println!("{name:36} ok      {seen}"),
            Err(why) => {
                failures += 1;
                println!("{name:36} FAILED  {why}");
                eprintln!("kept for a look: {}", dir.keep().display());
            }
        }
    }
    println!("faults: {count} cases, {failures} failed");
    if failures > 0 || count == 0 { Err(format!("{failures} of {count} cases failed")) } else { Ok(()) }
}

struct Trial<'a> {
    dir: &'a Path,
    name: &'a str,
    case: &'a Case,
}

impl Trial<'_> {
    async fn run(&self) -> Result<String, String> {
        let data = self.dir.join("data");
        let history = History::create(&self.history("first")).map_err(|error| error.to_string())?;
        let history = Arc::new(history);
        let first = self.start(&data, &options())?;
        create_queues(&mut first.clients()).await.map_err(|status| status.to_string())?;
        tokio::task::block_in_place(|| first.terminate());

        let mut shadow = Shadow::default();
        let inject = format!("inject={}:{}:when={}", self.case.call, self.case.fault, self.case.nth);
        let (status, stderr) = self.fault(&data, &history, &inject).await?;
        self.trace(&mut shadow, "faulty")?;
        let told = self.judge_end(status, &stderr, &history, &shadow)?;
        let fault = history.now();

        let as_it_is = self.copy(&data, "as-it-is")?;
        let after_cut = self.copy(&data, "after-cut")?;
        let cut = shadow.cut(&data, &after_cut).map_err(|error| error.to_string())?;
        // Most of their time is spent in waiting for leases to run out.
        let (acknowledged, after_cut, cut_again) = tokio::join!(
            self.restart_and_check(&as_it_is, &history, fault, "as it is"),
            self.restart_and_check(&after_cut, &history, fault, "after a power cut"),
            self.second_life(&data, &mut shadow, &history),
        );
        let (acknowledged, cut_again) = (acknowledged?, after_cut.and(cut_again)?);
        Ok(format!(
            "acknowledged={acknowledged} told={told} syncs={} again=0 cut={cut} cut_again={cut_again} lost=0",
            shadow.syncs
        ))
    }

    /// Runs the server into its fault.
    async fn fault(
        &self,
        data: &Path,
        history: &Arc<History>,
        inject: &str,
    ) -> Result<(ExitStatus, String), String> {
        let mut server = self.start(data, &self.traced("faulty", Some(inject)))?;
        let mut crew = Crew::new(history.clone(), SEED);
        crew.start_all();
        crew.up(0, &server.grpc);
        let start = std::time::Instant::now();
        while server.is_running() && start.elapsed() < FAULT_WITHIN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ended = !server.is_running();
        crew.down();
        let ending =
            tokio::task::block_in_place(|| if ended { Ok(server.wait()) } else { Err(server.kill()) });
        crew.end().await;
        ending.map_err(|stderr| format!("the server went on for {FAULT_WITHIN:?}:\n{stderr}"))
    }

    fn judge_end(
        &self,
        status: ExitStatus,
        stderr: &str,
        history: &History,
        shadow: &Shadow,
    ) -> Result<&'static str, String> {
        let killed = self.case.fault.starts_with("signal");
        if !killed && shadow.injected == 0 {
            return Err("the fault was never put in".to_owned());
        }
        if killed && status.signal() != Some(9) {
            return Err(format!("the server was not killed: {status}\n{stderr}"));
        }
        if !killed && (status.success() || status.code().is_none()) {
            return Err(format!("the server ended with {status}:\n{stderr}"));
        }
        if !killed && !stderr.contains("the log has stopped") {
            return Err(format!("the server does not say why it ended:\n{stderr}"));
        }
        if shadow.syncs_after_failure > 0 {
            return Err(format!("{} syncs of the log after one that failed", shadow.syncs_after_failure));
        }
        match (history.times_told("LOG_STOPPED") > 0, history.times_told("NO_CONNECTION") > 0) {
            (true, _) => Ok("LOG_STOPPED"),
            (false, true) => Ok("NO_CONNECTION"),
            (false, false) => Err("no client was told anything".to_owned()),
        }
    }

    /// Works on after the fault, and has the power cut at the end: what was only in memory must have been made sure.
    async fn second_life(&self, data: &Path, shadow: &mut Shadow, first: &History) -> Result<u64, String> {
        let history = Arc::new(self.branch("second", first, first.now())?);
        let server = self.start(data, &self.traced("second", None))?;
        let mut crew = Crew::new(history.clone(), SEED + 1);
        crew.start_all();
        crew.up(1, &server.grpc);
        tokio::time::sleep(SECOND_LIFE).await;
        tokio::task::block_in_place(|| server.kill());
        crew.down();
        crew.end().await;
        self.trace(shadow, "second")?;
        let after_cut = self.copy(data, "second-cut")?;
        let cut = shadow.cut(data, &after_cut).map_err(|error| error.to_string())?;
        let end = history.now();
        self.restart_and_check(&after_cut, &history, end, "after a second life and a power cut").await?;
        Ok(cut)
    }

    /// Starts the server once more, drains all, and judges the whole history. How many were acknowledged.
    async fn restart_and_check(
        &self,
        data: &Path,
        history: &History,
        until: Moment,
        when: &str,
    ) -> Result<u64, String> {
        let file = data.file_name().expect("it has a name").to_string_lossy().into_owned();
        let history = self.branch(&file, history, until)?;
        let server = self.start(data, &options()).map_err(|why| format!("{when}: {why}"))?;
        let history = Arc::new(history);
        last_life(&history, server, LAST_LIFE, None).await;
        let outcome = judge(&history, Figures::default());
        match outcome.violations.first() {
            Some(first) => Err(format!("{when}: {} violations, first {first:?}", outcome.figures.violations)),
            None => Ok(outcome.figures.acknowledged),
        }
    }

    fn start(&self, data: &Path, options: &ServerOptions) -> Result<Server, String> {
        Server::start_or_tell(data, options).map_err(|why| format!("{}: {why}", self.name))
    }

    fn traced(&self, life: &str, inject: Option<&str>) -> ServerOptions {
        let trace = self.dir.join(format!("trace-{life}")).display().to_string();
        let calls = "trace=fdatasync,fsync,pwritev,pwrite64";
        let fixed = ["strace", "-ff", "-ttt", "-y", "-v", "-s", "0", "-o", &trace, "-e", calls];
        // Much faster, but signals are not put in with it.
        let fast = inject.is_none_or(|inject| !inject.contains("signal")).then_some("--seccomp-bpf");
        let inject = inject.iter().flat_map(|inject| ["-e", inject]);
        let wrapper = fixed.into_iter().chain(fast).chain(inject).map(str::to_owned).collect();
        ServerOptions { wrapper, ..options() }
    }

    fn trace(&self, shadow: &mut Shadow, life: &str) -> Result<(), String> {
        shadow.follow(&self.dir.join(format!("trace-{life}"))).map_err(|error| error.to_string())
    }

    fn history(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.history"))
    }

    fn branch(&self, name: &str, of: &History, until: Moment) -> Result<History, String> {
        of.branch(&self.history(name), until).map_err(|error| error.to_string())
    }

    fn copy(&self, data: &Path, name: &str) -> Result<PathBuf, String> {
        let to = self.dir.join(name);
        let copied = Command::new("cp").arg("-a").arg(data).arg(&to).status();
        if copied.is_ok_and(|status| status.success()) { Ok(to) } else { Err("cp failed".to_owned()) }
    }
}
