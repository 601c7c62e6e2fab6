//! Stand-ins for programs that only a Mac has: shell scripts, first on PATH, that record their calls.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::Env;

/// The stand-ins of one test.
pub struct StandIns {
    directory: PathBuf,
}

impl StandIns {
    pub fn new(env: &Env) -> Self {
        let directory = env.standins();
        fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    /// A file that scripts may use.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts a script called `name` first on PATH. It records each call, then does what `body` says.
    pub fn script(&self, name: &str, body: &str) {
        let calls = self.file("calls").display().to_string();
        let body = format!("echo \"{name} $*\" >> '{calls}'\n{body}");
        executable(&self.file(name), &body);
    }

    /// Every call so far, oldest first: the program and its arguments.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.file("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }
}

/// Writes a shell script.
pub fn executable(path: &Path, body: &str) {
    executable_text(path, &format!("#!/bin/sh\n{body}\n"));
}

/// Writes a script of any kind.
pub fn executable_text(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Written beside and renamed: a running script of that name keeps its own text. And by another process: a script
    // that this one has open for writing, while another test forks, is "busy".
    let write = r#"printf %s "$1" > "$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#;
    let mut shell = Command::new("sh");
    let ran = shell.args(["-c", write]).arg(path).arg(text).status();
    assert!(ran.unwrap().success());
}

/// A Python that is none: it says what the real script says, and dies at 4096.
pub const MADE_UP_PYTHON: &str = r#"echo $$ >>"$0.log"
say() { printf 'data: %s\n' "$1"; }
printf 'Fetching\n\377\n'
while read -r request; do
  size=$(printf '%s' "$request" | sed 's/.*"size":\([0-9]*\).*/\1/')
  tokens=$(printf '%s' "$request" | sed 's/.*"tokens":\([0-9]*\).*/\1/')
  [ $size = 4096 ] && [ $tokens = 10000 ] && { echo "libc++abi: Insufficient Memory" >&2; kill -ABRT $$; }
  if [ $size = 1024 ] && [ $tokens = 10000 ]; then say '{"error":"ValueError: no"}'; continue; fi
  done=$size
  while [ $done -le $tokens ]; do
    say '{"type":"prompt_processing.progress","progress":'$((done * 1000000 / tokens))'e-6,"seconds":'$((done * size))'}'
    read -r goes; [ "$goes" = '"stop"' ] && break
    done=$((done + size))
  done
  if [ "$goes" = '"stop"' ]; then say '{"error":"Cut: "}'; continue; fi
  stats='"input_tokens":'$tokens',"time_to_first_token_seconds":'$((tokens * size))',"peak_memory_bytes":'${size}000
  say '{"type":"chat.end","result":{"stats":{'$stats'}}}'
done
"#;

/// So many seconds before now.
pub fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

/// Sets when a file was last written.
pub fn written(path: &Path, at: SystemTime) {
    let file = File::options().write(true).open(path);
    file.unwrap().set_modified(at).unwrap();
}

/// Puts the binary under test where a program may be that launchd runs.
pub fn install(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if fs::hard_link(super::LMPATCH, path).is_err() {
        super::copy_program(super::LMPATCH, path);
    }
}

/// A `launchctl` with a launchd of its own: a bootout that takes its time (exit 36 and three more looks), a bootstrap
/// that fails where the job is still there, and whatever else it is told to.
pub struct Launchd(PathBuf);

impl Launchd {
    /// One that has no job.
    pub fn new(standins: &StandIns) -> Self {
        let directory = standins.directory.clone();
        let body = format!(
            r#"cd '{0}' || exit 70
fails() {{ [ -e "$1-exit" ] && {{ echo "$1 failed: $(cat "$1-exit"): as told" >&2; exit "$(cat "$1-exit")"; }}; }}
case $1 in
print)
    [ -e going ] && {{
        looks=$(cat going)
        [ "$looks" -gt 0 ] || rm going loaded
        [ "$looks" -gt 0 ] && echo $((looks - 1)) > going
    }}
    [ -e loaded ] || {{ echo "Could not find service" >&2; exit 113; }};;
bootstrap)
    fails bootstrap
    [ -e loaded ] && {{ echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }}
    cp "$3" loaded;;
bootout)
    [ -e loaded ] || {{ echo "Boot-out failed: 3: No such process" >&2; exit 3; }}
    fails bootout
    [ -e going ] || echo 3 > going
    echo "Boot-out failed: 36: Operation now in progress" >&2
    exit 36;;
*) exit 64;;
esac"#,
            directory.display()
        );
        standins.script("launchctl", &body);
        Self(directory)
    }

    /// The job that it has.
    pub fn job(&self) -> Option<Vec<u8>> {
        fs::read(self.0.join("loaded")).ok()
    }

    /// Makes it forget the job, as when the background item is switched off.
    pub fn forget(&self) {
        fs::remove_file(self.0.join("loaded")).unwrap();
    }

    /// From now on `verb` fails with this exit code.
    pub fn fails(&self, verb: &str, code: i32) {
        fs::write(self.0.join(format!("{verb}-exit")), code.to_string()).unwrap();
    }

    /// From now on `verb` works.
    pub fn works(&self, verb: &str) {
        fs::remove_file(self.0.join(format!("{verb}-exit"))).unwrap();
    }

    /// From now on a bootout takes for ever.
    pub fn never_lets_go(&self) {
        fs::write(self.0.join("going"), "1000000").unwrap();
    }
}
