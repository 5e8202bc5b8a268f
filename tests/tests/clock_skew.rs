//! Time is Postgres's: a host whose clock is wrong by weeks takes the same jobs, dies and rescues at the same moments,
//! and keeps the same results.

use std::path::Path;
use std::process::Command;

use job::JobState;
use serde_json::json;
use tests::{Fleet, job};

/// Shifts the wall clock of a process by $CLOCK_SHIFT_S seconds, and leaves its monotonic clock alone.
const SHIFT: &str = "
    #define _GNU_SOURCE
    #include <stdlib.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    int clock_gettime(clockid_t clock, struct timespec *now) {
        int failed = syscall(SYS_clock_gettime, clock, now);
        const char *shift = getenv(\"CLOCK_SHIFT_S\");
        if (!failed && shift && clock == CLOCK_REALTIME) now->tv_sec += atol(shift);
        return failed;
    }
";

/// A library to preload. Whoever builds Rust has a C compiler, which links it.
fn clock_shift(folder: &Path) -> String {
    let (source, library) = (folder.join("shift.c"), folder.join("shift.so"));
    std::fs::write(&source, SHIFT).expect("written");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("a C compiler").success());
    library.to_string_lossy().into_owned()
}

#[tokio::test]
async fn workers_whose_clocks_are_weeks_apart_run_and_rescue_as_ever() {
    const TWENTY_DAYS_S: i64 = 20 * 86_400;
    let fleet = Fleet::new().await;
    let library = clock_shift(fleet.folder.path());
    let skewed = |name, shift_s: i64| {
        let launch = fleet.worker(name).short_lease();
        launch.set("LD_PRELOAD", &library).set("CLOCK_SHIFT_S", shift_s)
    };
    let partitions = "SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1";
    let before = fleet.database.texts(partitions).await;
    let mut early = skewed("early", TWENTY_DAYS_S).start().await;
    let long = job("s", "scripted", json!({"count": 10, "delay_ms": 200}));
    let short = job("t", "echo", json!(1));
    fleet.enqueue(&[long.clone(), short.clone()]).await;
    assert_eq!(fleet.ended(short.job_id).await.state, JobState::Succeeded);
    fleet.iterated(long.job_id, 3).await;

    let late = skewed("late", -TWENTY_DAYS_S).start().await;
    early.kill();
    let view = fleet.ended(long.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 2, 10), "{view:?}");
    assert_eq!(view.worker_id.unwrap().to_string(), late.id().await);
    assert_eq!(fleet.vhost.dead_letters().await, []);
    assert_eq!(fleet.database.texts(partitions).await, before, "none was made or dropped too early");
}
