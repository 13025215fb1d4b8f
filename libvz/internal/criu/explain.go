package criu

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
)

// Error is a failed operation of CRIU.
type Error struct {
	Op  string // "dump" or "restore"
	Log string // path of CRIU's log
	// Lines are the log's decisive lines, at most six, without time stamps.
	Lines []string
	// Cause says in plain words what is wrong where it is known; Remedy
	// what to do about it. Pid is the task it is about, in the guest's pid
	// namespace where CRIU gives that one; 0 where there is none.
	Cause, Remedy string
	Pid           int
	// Unsupported is true where this kernel cannot do what was asked for.
	Unsupported bool
	// Retry is true for races that the next attempt is likely to win.
	Retry bool
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "criu %s failed", e.Op)
	switch {
	case e.Cause != "":
		fmt.Fprintf(&b, ": %s", e.Cause)
	case len(e.Lines) > 0:
		fmt.Fprintf(&b, ": %s", strings.Join(e.Lines, "; "))
	case e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Log != "" {
		fmt.Fprintf(&b, " (log: %s)", e.Log)
	}
	return b.String()
}

// Unwrap returns what CRIU's RPC, or the refusing stage, said.
func (e *Error) Unwrap() error { return e.Err }

// symptom is one known failure: the log line that betrays it, and its meaning.
// $1.. of the pattern may be used in cause and remedy.
type symptom struct {
	line          *regexp.Regexp
	cause, remedy string
	retry         bool
	unsupported   bool
}

// symptoms are asked in order; the first that matches any error line wins.
// Each was seen with a real guest, on the CRIU versions that MinVersion admits.
func symptoms() []symptom {
	s := func(line, cause, remedy string) symptom {
		return symptom{line: regexp.MustCompile(line), cause: cause, remedy: remedy}
	}
	race := s(`error parsing \[inotify wd:`, "a cgroup file vanished while its inotify watch was read", "try again")
	waiting := s(`Found a closed in-flight socket|Non-empty write queue on an in-flight socket`, "a unix connection waits to be accepted", "try again")
	passed := s(`Control messages in queue`, "a descriptor or credentials are on their way through a unix socket", "try again")
	spawning := s(`Unseizable non-zombie \d+ found, state D|No NS ID with kid`, "a task is starting another this moment", "try again")
	gone := s(`Can't dump that handle, through \./sys/fs/cgroup`, "a cgroup was removed, and who watches it has not heard yet", "try again")
	gone.retry = true
	race.retry, waiting.retry, passed.retry, spawning.retry = true, true, true, true
	tracking := s(`Tracking memory is not available`, "this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY)", "take a whole checkpoint, without --pre-dump and --parent-path, or one with --lazy-pages, which moves the memory last")
	tracking.unsupported = true
	return []symptom{
		race, waiting, passed, spawning, gone, tracking,
		s(`Can't dump nested (\w+) namespace`, "a task has a $1 namespace of its own, which CRIU cannot save",
			"turn off the setting of that unit that makes it (ProtectHostname=, PrivateIPC=, PrivatePIDs=, PrivateUsers=), or stop the unit"),
		s(`io_uring|send_fds failed \(-22\)`, "a task uses io_uring, which CRIU cannot save", "start the guest with the seccomp profile of `vzrun spec --system` and without the feature io_uring, or turn io_uring off in that program"),
		s(`Unsupported proto 262|Unknown.*proto.*262`, "a task has an MPTCP socket, which CRIU cannot save", "set the sysctl net.mptcp.enabled=0 in config.json and restart the program"),
		s(`Connected TCP socket|established TCP`, "the guest has open TCP connections", "add --tcp-established to keep them"),
		s(`In-flight connection`, "a TCP connection is being opened this moment", "try again, or add --tcp-skip-in-flight to leave it out"),
		s(`External socket is used`, "a unix socket of the guest is connected to one outside", "add --ext-unix-sk, or close that connection"),
		s(`Found dangling pty|Found slave peer without master|tty.*Don't have tty to inherit session|Found session leader with no`, "a task holds a terminal whose other end is outside the guest", "end that session (log out), or add --shell-job"),
		s(`ctty inheritance detected`, "a program in a login session has /dev/tty open, whose terminal another process holds too",
			"end that program (such as less, or dash as an interactive shell) and try again"),
		s(`POKEDATA failed: Input/output error`, "the first executable memory of a task is shared and cannot be written to, as that of PHP's just-in-time compiler",
			"set opcache.preferred_memory_model=posix (or opcache.jit_buffer_size=0) and restart PHP"),
		s(`Can't dump that handle`, "a program watches a file that has no lasting handle, as on an overlay without index and nfs_export",
			"mount the overlay with index=on,nfs_export=on, or name its layers in the annotation org.vzrun.rootfs.overlay"),
		s(`doesn't have a proper root mount`, "a mount inside the guest comes from outside its root", "name that mount in config.json, so that it is saved as an external one"),
		s(`Can't lookup mount=|Can't open mount|Can't find mount for`, "a task has a file open on a mount that is not part of the guest", "end that task (an exec'ed session?) and try again"),
		s(`Some file locks are hold by dumping tasks`, "tasks hold file locks", "add --file-locks"),
		s(`Unable to open an userfaultfd`, "the kernel refuses userfaultfd in the guest's user namespace", "set vm.unprivileged_userfaultfd=1, or do without lazy pages"),
		s(`Can't create inotify .*Too many open files`, "the host's limit of inotify instances of one user is reached, which restored guests share",
			"sysctl -w fs.inotify.max_user_instances=8192"),
		s(`File (\S+) has bad (?:size|mode|build-ID)`, "the file /$1 is not as it was at the checkpoint", "restore with the rootfs of that moment: a snapshot or a copy made right after the checkpoint"),
		s(`(No space left on device|ENOSPC)`, "no space left for the images", "free space or choose another --image-path"),
		s(`timens-0\.img.*Permission denied|Permission denied.*\.img`, "the guest's root cannot read the images", "put the images where no parent mount forbids it, or on a file system with id-mapped mounts"),
		s(`Can't open (?:file )?([\w.-]+\.img)|Unable to open ([\w.-]+\.img)|open ([\w.-]+\.img)`, "image file $1$2$3 is missing", "the checkpoint is incomplete: take another"),
		s(`(?:magic|Unexpected EOF|truncated|Can't read|Read.*got only).*`, "the images are damaged", "take another checkpoint"),
		s(`Pid (\d+) do not match expected|pid .* is already in use`, "a pid of the guest is taken in the new pid namespace", "try again"),
		s(`seccomp.*notif`, "a task is watched through a seccomp notifier, which CRIU cannot save", "stop the watching program"),
	}
}

// explain reads CRIU's log and fills an Error from it.
func explain(op, log string, err error) *Error {
	e := &Error{Op: op, Log: log, Err: err}
	// What we refused ourselves is the cause of all that CRIU's log says.
	var refused *refusal
	if errors.As(err, &refused) {
		e.Cause = refused.Error()
		if errors.Is(err, ErrStalled) {
			e.Remedy = "try again"
		}
		return e
	}
	f, openErr := os.Open(log)
	if openErr != nil {
		e.Log = ""
		return e
	}
	defer f.Close()
	e.Lines = errorLines(f)
	e.diagnose()
	e.Pid = pidOf(e.Lines)
	return e
}

// maxErrorLines bounds what an error carries of a log.
const maxErrorLines = 6

var (
	logPrefix = pattern(`^\(\d+\.\d+\)\s*`)
	taskPid   = pattern(`^\s*(\d+): `)
	namedPid  = pattern(`(?:pid[ =:] ?|pid_real |task )(\d+)`)
	tried     = pattern(`Trying via mntid \d+ .* ns_mountpoint @(\S+)`)
	// harmless are errors that CRIU logs and then does without: raising its
	// own limit where CAP_SYS_RESOURCE is missing.
	harmless = pattern(`Can't setup RLIMIT_NOFILE for self`)
)

// pattern compiles at its first use: most starts of the program need none.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// errorLines returns the first lines that CRIU logged as errors: the first
// names the cause, later ones its consequences. One of a watched file gets the
// mount through which CRIU looked for that last, which no error says.
func errorLines(r io.Reader) []string {
	var lines []string
	through := ""
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	for sc.Scan() && len(lines) < maxErrorLines {
		line := sc.Text()
		if m := tried().FindStringSubmatch(line); m != nil {
			through = ", through " + m[1]
		}
		if !strings.Contains(line, "Error (") || harmless().MatchString(line) {
			continue
		}
		line = strings.TrimSpace(logPrefix().ReplaceAllString(line, ""))
		line = strings.Replace(line, "Error (criu/", "(", 1)
		if strings.HasSuffix(line, "Can't dump that handle") {
			line += through
		}
		lines = append(lines, line)
	}
	return lines
}

// diagnose looks for the first known symptom in the lines.
func (e *Error) diagnose() {
	for _, s := range symptoms() {
		for _, l := range e.Lines {
			m := s.line.FindStringSubmatchIndex(l)
			if m == nil {
				continue
			}
			e.Cause = string(s.line.ExpandString(nil, s.cause, l, m))
			e.Remedy = string(s.line.ExpandString(nil, s.remedy, l, m))
			e.Retry, e.Unsupported = s.retry, s.unsupported
			return
		}
	}
}

// pidOf finds the task that the first telling line is about.
func pidOf(lines []string) int {
	for _, re := range []*regexp.Regexp{taskPid(), namedPid()} {
		for _, l := range lines {
			if m := re.FindStringSubmatch(l); m != nil {
				var pid int
				if _, err := fmt.Sscan(m[1], &pid); err == nil {
					return pid
				}
			}
		}
	}
	return 0
}
