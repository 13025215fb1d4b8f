package criu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]int{
		"Version: 4.2.1\n":                    40201,
		"Version: 4.2\nGitID: v4.2-3-gabc\n":  40200,
		"Version: 3.17.1\n":                   31701,
		"warning: x\nVersion: 10.0.12 (foo)":  100012,
		"criu: error while loading libraries": 0,
		"Version: 4.200.1":                    0,
		"":                                    0,
	} {
		got, err := parseVersion(out)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v; want %d", out, got, err, want)
		}
	}
}

// A failing criu must be told from an old one and from none at all.
func TestCheckVersionOfPrograms(t *testing.T) {
	dir := t.TempDir()
	program := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ctx := context.Background()
	if v, err := CheckVersion(ctx, program("new", "echo Version: 4.2.1")); err != nil || v != 40201 {
		t.Errorf("new: %d, %v", v, err)
	}
	if _, err := CheckVersion(ctx, program("old", "echo Version: 4.1.1")); !errors.Is(err, ErrTooOld) || !strings.Contains(err.Error(), "4.1.1") {
		t.Errorf("old: %v", err)
	}
	if _, err := CheckVersion(ctx, program("broken", "exit 1")); err == nil || errors.Is(err, ErrTooOld) {
		t.Errorf("broken: %v", err)
	}
	if _, err := Find(filepath.Join(dir, "none")); !errors.Is(err, ErrNotFound) {
		t.Errorf("none: %v", err)
	}
}

func TestExplain(t *testing.T) {
	cases := map[string]struct {
		log         string
		cause       string
		retry       bool
		pid         int
		firstOfLine string
	}{
		"nested namespace": {
			log:   "(00.01) Dumping\n(00.058211) Error (criu/namespaces.c:463): Can't dump nested user namespace for 4711\n(00.1) Error (criu/cr-dump.c:2111): Dumping FAILED.\n",
			cause: "a task has a user namespace of its own", firstOfLine: "(namespaces.c:463)",
		},
		"inotify race": {
			log: "(00.05) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
				"(00.2) Error (criu/proc_parse.c:2107): error parsing [inotify wd:1 ino:2 sdev:26 mask:2]\n",
			cause: "a cgroup file vanished", retry: true, firstOfLine: "(proc_parse.c",
		},
		"a watched cgroup is gone": {
			log: "(00.2) fsnotify: \t\tTrying via mntid 208 root / ns_mountpoint @./sys/fs/cgroup (12)\n" +
				"(00.2) Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0x1b:0x1fb9 cannot be opened\n" +
				"(00.2) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle\n",
			cause: "a cgroup was removed", retry: true, firstOfLine: "(fsnotify.c:284)",
		},
		"a watched file of an overlay": {
			log: "(00.2) fsnotify: \t\tTrying via mntid 208 root / ns_mountpoint @./ (12)\n" +
				"(00.2) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle\n",
			cause: "a program watches a file that has no lasting handle", firstOfLine: "(fsnotify.c:284)",
		},
		"missing image": {
			log:   "(00.00)      1: Error (criu/image.c:500): Unable to open core-17.img: No such file or directory\n",
			cause: "image file core-17.img is missing", pid: 1, firstOfLine: "1: (image.c",
		},
		"terminal of a login session": {
			log:   "(02.9) Error (criu/tty.c:2286): tty: ctty inheritance detected sid/pgrp 236 (ctty pid_real 32366 pty pid_real 32280)\n",
			cause: "a program in a login session has /dev/tty open", pid: 32366, firstOfLine: "(tty.c:2286)",
		},
		"compiler of PHP": {
			log: "(00.7) Error (compel/src/lib/ptrace.c:73): POKEDATA failed: Input/output error\n" +
				"(00.7) Error (criu/cr-dump.c:1480): Can't infect (pid: 19754) with parasite\n",
			cause: "the first executable memory of a task is shared", pid: 19754, firstOfLine: "Error (compel/src/lib/ptrace.c:73)",
		},
		"inotify instances": {
			log: "(00.3)      1: Error (criu/fsnotify.c:664): fsnotify: Can't create inotify for 0x000022: Too many open files\n" +
				"(00.3)      1: Error (criu/files.c:1221): Unable to open fd=13 id=0x22\n",
			cause: "the host's limit of inotify instances", pid: 1, firstOfLine: "1: (fsnotify.c:664)",
		},
		"unknown": {
			log: "(00.00) Error (criu/odd.c:1): something new\n", cause: "", firstOfLine: "(odd.c:1)",
		},
		"nothing": {log: "(00.00) all is well\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dump.log")
			if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
				t.Fatal(err)
			}
			root := errors.New("rpc said no")
			e := explain("dump", path, root)
			if !strings.HasPrefix(e.Cause, c.cause) || (c.cause == "") != (e.Cause == "") {
				t.Errorf("cause %q, want %q", e.Cause, c.cause)
			}
			if e.Retry != c.retry || e.Pid != c.pid {
				t.Errorf("retry %v pid %d, want %v %d", e.Retry, e.Pid, c.retry, c.pid)
			}
			if c.firstOfLine != "" && (len(e.Lines) == 0 || !strings.HasPrefix(e.Lines[0], c.firstOfLine)) {
				t.Errorf("lines %q", e.Lines)
			}
			if c.cause != "" && e.Remedy == "" {
				t.Error("a known cause without a remedy")
			}
			if !errors.Is(e, root) || !strings.Contains(e.Error(), path) {
				t.Errorf("error %q loses the log or its cause", e)
			}
		})
	}
}

func TestDiscardKeepsWhatIsNotAnImage(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"core-1.img", "notes.txt", "dump.log"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Discard(dir); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 2 {
		t.Errorf("left: %q", left)
	}
}
