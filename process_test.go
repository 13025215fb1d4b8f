package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"9": 9, "0": 0, "64": 64, "KILL": 9, "SIGKILL": 9, "kill": 9, "sigTerm": 15, "USR1": 10,
		"RTMIN": 34, "RTMIN+3": 37, "SIGRTMIN+3": 37, "rtmin+30": 64, "RTMAX": 64, "RTMAX-1": 63,
		"": -1, "65": -1, "-1": -1, "-9": -1, "NOSUCH": -1, "SIG": -1, "RTMIN-1": -1, "RTMIN+31": -1,
		"RTMAX+1": -1, "RTMIN3": -1, "RTMINX": -1, "RTMIN+x": -1, "TERM ": -1, "99999999999999999999": -1,
	} {
		got, err := parseSignal(s)
		if want < 0 {
			if err == nil || exitCode(err) != codeUsage {
				t.Errorf("%q: %v, %v, want a usage error", s, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestForwardableLeavesOurOwnSignals(t *testing.T) {
	forwarded := map[os.Signal]bool{}
	classic, realtime := forwardable()
	for _, s := range slices.Concat(classic, realtime) {
		forwarded[s] = true
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGUSR1, 37, 64, syscall.SIGCHLD, syscall.SIGWINCH} {
		if !forwarded[s] {
			t.Errorf("signal %d is not caught", s)
		}
	}
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGURG, syscall.SIGPIPE, syscall.SIGSEGV, syscall.SIGTTOU, 32, 33} {
		if forwarded[s] {
			t.Errorf("signal %d is caught", s)
		}
	}
}

func TestParseUser(t *testing.T) {
	gid := func(n uint32) *uint32 { return &n }
	for _, test := range []struct {
		in  string
		uid uint32
		gid *uint32
		bad bool
	}{
		{in: "0", uid: 0},
		{in: "1000", uid: 1000},
		{in: "1000:100", uid: 1000, gid: gid(100)},
		{in: "0:0", uid: 0, gid: gid(0)},
		{in: "4294967294", uid: 4294967294},
		{in: "4294967295", bad: true},
		{in: "root", bad: true},
		{in: "", bad: true},
		{in: ":", bad: true},
		{in: "1:", bad: true},
		{in: ":1", bad: true},
		{in: "-1", bad: true},
		{in: "1:2:3", bad: true},
	} {
		uid, g, err := parseUser(test.in)
		if test.bad {
			if exitCode(err) != codeUsage {
				t.Errorf("%q: %v, want a usage error", test.in, err)
			}
			continue
		}
		if err != nil || uid != test.uid || !reflect.DeepEqual(g, test.gid) {
			t.Errorf("%q: %d, %v, %v", test.in, uid, g, err)
		}
	}
}

func TestApplyProcessChanges(t *testing.T) {
	base := func() *specs.Process {
		return &specs.Process{
			Terminal: true, ConsoleSize: &specs.Box{Height: 1, Width: 1}, NoNewPrivileges: true,
			Args: []string{"init"}, Cwd: "/", Env: []string{"A=1"},
			User:         specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
		}
	}
	no := false
	p := base()
	changes := processChanges{
		args: []string{"ls", "-l"}, env: []string{"B=1,2"}, caps: []string{"CAP_CHOWN"}, cwd: "/tmp",
		user: "7", gids: []string{"8"}, apparmor: "prof", label: "label", noNewPrivs: &no,
	}
	if err := changes.apply(p); err != nil {
		t.Fatal(err)
	}
	want := &specs.Process{
		Args: []string{"ls", "-l"}, Cwd: "/tmp", Env: []string{"A=1", "B=1,2"},
		User: specs.User{UID: 7, GID: 2, AdditionalGids: []uint32{3, 8}},
		Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_KILL", "CAP_CHOWN"}, Effective: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"},
		},
		ApparmorProfile: "prof", SelinuxLabel: "label",
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}

	p = base()
	p.Capabilities = nil
	if err := (&processChanges{args: []string{"ls"}, caps: []string{"CAP_KILL"}}).apply(p); err != nil || p.Capabilities == nil || p.Capabilities.Ambient != nil {
		t.Errorf("capabilities of a process without any: %+v, %v", p.Capabilities, err)
	}
	p.Capabilities.Inheritable = []string{"CAP_KILL"}
	(&processChanges{caps: []string{"CAP_CHOWN"}}).addCapabilities(p)
	if !reflect.DeepEqual(p.Capabilities.Ambient, []string{"CAP_CHOWN"}) {
		t.Errorf("ambient capabilities %q", p.Capabilities.Ambient)
	}
}

func TestReadProcess(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		json string
		ok   bool
	}{
		"good":         {`{"args":["ls"],"cwd":"/","user":{"uid":1}}`, true},
		"no args":      {`{"args":[],"cwd":"/"}`, false},
		"no cwd":       {`{"args":["ls"]}`, false},
		"relative cwd": {`{"args":["ls"],"cwd":"tmp"}`, false},
		"no json":      {`args`, false},
		"cut off":      {`{"args":["ls"],`, false},
		"trailing":     {`{"args":["ls"],"cwd":"/"} x`, false},
		"empty":        {``, false},
		"wrong type":   {`{"args":"ls","cwd":"/"}`, false},
	} {
		path := filepath.Join(dir, "process.json")
		if err := os.WriteFile(path, []byte(test.json), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readProcess(path); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListenFDs(t *testing.T) {
	for _, test := range []struct {
		pid, fds string
		want     int
	}{
		{"42", "2", 2},
		{"43", "2", 0},
		{"", "2", 0},
		{"42", "", 0},
		{"42", "-1", 0},
		{"42", "x", 0},
	} {
		if got := listenFDs(test.pid, test.fds, 42); got != test.want {
			t.Errorf("LISTEN_PID=%s LISTEN_FDS=%s: %d, want %d", test.pid, test.fds, got, test.want)
		}
	}
}

func TestLaunchCheck(t *testing.T) {
	for _, test := range []struct {
		name     string
		launch   launch
		terminal bool
		ok       bool
	}{
		{"attached", launch{}, false, true},
		{"attached with terminal", launch{}, true, true},
		{"detached", launch{detach: true}, false, true},
		{"detached with terminal and socket", launch{detach: true, consoleSocket: "s"}, true, true},
		{"detached with terminal", launch{detach: true}, true, false},
		{"socket without terminal", launch{detach: true, consoleSocket: "s"}, false, false},
		{"socket while attached", launch{consoleSocket: "s"}, true, false},
		{"negative descriptors", launch{preserveFDs: -1}, false, false},
	} {
		if err := test.launch.check(test.terminal, false); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestWritePidFile(t *testing.T) {
	dir := t.TempDir()
	l := launch{pidFile: filepath.Join(dir, "pid")}
	for _, pid := range []int{1234567, 8} { // the second, shorter one replaces all of the first
		if err := l.writePidFile(pid); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(l.pidFile)
	if err != nil || string(data) != "8" {
		t.Errorf("%q, %v", data, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	l.pidFile = filepath.Join(dir, "none", "pid")
	if err := l.writePidFile(1); err == nil {
		t.Error("a pid file in a missing directory was written")
	}
}
