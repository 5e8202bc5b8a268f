//! Another clock for a process: its wall clock is ahead or behind, its monotonic clock is not changed.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use tempfile::TempDir;

/// The source of a library to preload. All processes that use the same file have the same clock.
const SHIFT: &str = "
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <time.h>
    #include <unistd.h>
    static const volatile long *ahead_s;
    __attribute__((constructor)) static void begin(void) {
        const char *path = getenv(\"CLOCK_AHEAD_FILE\");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (file < 0) return;
        void *at = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (at != MAP_FAILED) ahead_s = at;
        close(file);
    }
    int clock_gettime(clockid_t clock, struct timespec *now) {
        int failed = syscall(SYS_clock_gettime, clock, now);
        if (!failed && ahead_s && clock == CLOCK_REALTIME) now->tv_sec += *ahead_s;
        return failed;
    }
    int gettimeofday(struct timeval *now, void *zone) {
        struct timespec at;
        (void)zone;
        clock_gettime(CLOCK_REALTIME, &at);
        now->tv_sec = at.tv_sec;
        now->tv_usec = at.tv_nsec / 1000;
        return 0;
    }
    time_t time(time_t *now) {
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        if (now) *now = at.tv_sec;
        return at.tv_sec;
    }
";

/// A clock that can be set while processes read it.
pub struct SetClock(TempDir);

impl SetClock {
    /// Creates a clock that is this many seconds ahead, or behind if negative. A machine that builds Rust has a C
    /// compiler, which builds the library.
    pub fn new(ahead_s: i64) -> SetClock {
        let clock = SetClock(TempDir::new().expect("a folder"));
        // Servers that run as another user must be able to read it.
        std::fs::set_permissions(clock.0.path(), PermissionsExt::from_mode(0o755)).expect("a folder of ours");
        let source = clock.0.path().join("shift.c");
        std::fs::write(&source, SHIFT).expect("written");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(clock.0.path().join("shift.so")).arg(&source);
        assert!(compiler.status().expect("a C compiler").success());
        File::create(clock.0.path().join("ahead_s")).expect("a file");
        clock.set(ahead_s);
        clock
    }

    /// The environment variables that a process needs.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.0.path().join(name).to_string_lossy().into_owned();
        [("LD_PRELOAD", path("shift.so")), ("CLOCK_AHEAD_FILE", path("ahead_s"))]
    }

    /// Sets the clock for all processes at once.
    pub fn set(&self, ahead_s: i64) {
        let file = File::options().write(true).open(self.0.path().join("ahead_s")).expect("a file of ours");
        file.write_all_at(&ahead_s.to_ne_bytes(), 0).expect("written");
    }
}
