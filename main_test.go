package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func TestExitCode(t *testing.T) {
	wrapped := func(err error) error { return &libvz.Error{Op: "start", ID: "a", Err: fmt.Errorf("deeper: %w", err)} }
	for name, test := range map[string]struct {
		err  error
		code int
	}{
		"success":            {nil, 0},
		"any error":          {errors.New("x"), codeError},
		"usage":              {&usageError{msg: "x"}, codeUsage},
		"unknown help topic": {fmt.Errorf("%w: x", cli.ErrTopic), codeUsage},
		"busy":               {wrapped(libvz.ErrBusy), codeBusy},
		"wrong status":       {wrapped(libvz.ErrStatus), codeStatus},
		"unsupported":        {wrapped(libvz.ErrUnsupported), codeUnsupported},
		"unconfirmed":        {wrapped(libvz.ErrUnconfirmed), codeUnconfirmed},
		"unconfirmed wins":   {errors.Join(libvz.ErrBusy, libvz.ErrUnconfirmed), codeUnconfirmed},
		"not there":          {wrapped(libvz.ErrNotExist), codeError},
		"exec fails":         {&execFailure{wrapped(libvz.ErrStatus)}, codeExecFailed},
		"guest's code":       {passOn(42), 42},
		"guest killed":       {passOn(137), 137},
		"guest succeeded":    {passOn(0), 0},
	} {
		if got := exitCode(test.err); got != test.code {
			t.Errorf("%s: exit code %d, want %d", name, got, test.code)
		}
	}
}

func TestHintOf(t *testing.T) {
	inner := &libvz.Error{Op: "load", Err: errors.New("x"), Hint: "inner"}
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("x"), ""},
		{libvz.ErrNotExist, "vzrun list shows the containers there are under --root"},
		{fmt.Errorf("%w: %w", libvz.ErrNotExist, inner), "inner"},
		{errors.Join(errors.New("x"), inner), "inner"},
		{&usageError{msg: "x", hint: "usage"}, "usage"},
		{fmt.Errorf("around: %w", inner), "inner"},
		{&libvz.Error{Op: "start", Err: inner}, "inner"},
		{&libvz.Error{Op: "start", Err: inner, Hint: "outer"}, "outer"},
		{&execFailure{inner}, "inner"},
	} {
		if got := hintOf(test.err); got != test.want {
			t.Errorf("%v: hint %q, want %q", test.err, got, test.want)
		}
	}
}

func TestCheckPositionals(t *testing.T) {
	for _, test := range []struct {
		verb        string
		args        []string
		least, most int
		want        string // part of message and hint; "" = accepted
	}{
		{"state", []string{"a"}, 1, 1, ""},
		{"state", nil, 1, 1, "id is missing"},
		{"state", []string{"a", "b"}, 1, 1, `unexpected argument "b"`},
		{"state", []string{"-a"}, 1, 1, ""},
		{"list", nil, 0, 0, ""},
		{"list", []string{"a"}, 0, 0, `unexpected argument "a"`},
		{"delete", []string{"a", "--force"}, 1, 1, "delete: unknown flag --force"},
		{"kill", []string{"a", "KILL"}, 1, 2, ""},
		{"kill", []string{"a", "-9"}, 1, 2, "vzrun kill <container-id> 9"},
		{"kill", []string{"a", "-KILL"}, 1, 2, "vzrun kill <container-id> 9"},
		{"kill", []string{"a", "KILL", "--some"}, 1, 2, "vzrun kill --help"},
		{"exec", []string{"a", "ls", "-l", "--all"}, 2, unlimited, ""},
		{"exec", []string{"a"}, 2, unlimited, "an argument is missing"},
		{"ps", []string{"a", "-ef"}, 1, unlimited, ""},
	} {
		err := checkPositionals(test.verb, "<container-id>", test.args, test.least, test.most)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s %q: %v", test.verb, test.args, err)
			}
			continue
		}
		if err == nil || exitCode(err) != codeUsage || !strings.Contains(err.Error()+"\n"+hintOf(err), test.want) {
			t.Errorf("%s %q: error %v with hint %q, want %q", test.verb, test.args, err, hintOf(err), test.want)
		}
	}
}

func TestFlagsFirst(t *testing.T) {
	for line, want := range map[string]string{
		"":                                     "",
		"list":                                 "list",
		"delete a --force":                     "delete --force a",
		"delete --force a":                     "delete --force a",
		"--root /r --debug delete a -f":        "--root /r --debug delete -f a",
		"--root=/r kill a --all KILL":          "--root=/r kill --all a KILL",
		"update a --memory -1 --cpuset-cpus 1": "update --memory -1 --cpuset-cpus 1 a",
		"update -r - a":                        "update -r - a",
		"update a --pids-limit=5":              "update --pids-limit=5 a",
		"kill a -9":                            "kill a -9",
		"delete a --nonsense --force":          "delete --force a --nonsense",
		"delete --nonsense a --force":          "delete --nonsense a --force",
		"run -b /b -- --a --detach":            "run -b /b -- --a --detach",
		"run a --bundle":                       "run --bundle a",
		"state a --help":                       "state --help a",
		"exec a ls --tty":                      "exec a ls --tty",
		"--debug ps a -o pid --format json":    "--debug ps a -o pid --format json",
		"nonsense a --force":                   "nonsense a --force",
		"--nonsense delete a --force":          "--nonsense delete a --force",
		"help delete":                          "help delete",
		"checkpoint inspect --format json a":   "checkpoint inspect --format json a",
		"checkpoint inspect a --format json":   "checkpoint inspect --format json a",
		"checkpoint --image-path /i inspect":   "checkpoint --image-path /i inspect",
		"checkpoint inspect":                   "checkpoint inspect",
	} {
		got := flagsFirst(newApp(), append([]string{"vzrun"}, strings.Fields(line)...))
		if text := strings.Join(got[1:], " "); text != want {
			t.Errorf("%q became %q, want %q", line, text, want)
		}
	}
}

// Every verb must check its arguments, before it touches anything.
func TestVerbsRefuseSurplusArguments(t *testing.T) {
	for _, verb := range verbs() {
		args := []string{"vzrun", "--root", t.TempDir(), verb.Name, "--", "id", "surplus", "more", "--force"}
		switch verb.Name {
		case "exec": // takes any command, unless it has a file with one
			args = []string{"vzrun", "exec", "--process", "/nowhere", "id", "ls"}
		case "ps": // takes any option of ps
			args = []string{"vzrun", "ps"}
		}
		err := newApp().Run(context.Background(), args)
		if exitCode(err) != codeUsage {
			t.Errorf("%s: %v, want a usage error", verb.Name, err)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	root := t.TempDir()
	for _, args := range [][]string{
		{"--bogus"},
		{"checkpoint", "--empty-ns", "pid", "id"},
		{"restore", "--empty-ns", "mount", "id"},
		{"bogus"},
		{"--root", "/", "list"},
		{"--root", "", "list"},
		{"--root", root, "--log-format", "xml", "list"},
		{"--root", root, "list", "--format", "xml"},
		{"--root", root, "state", "--bogus", "id"},
		{"--root", root, "kill", "id", "NOSUCH"},
		{"--root", root, "spec", "--ram", "1G"},
		{"--root", root, "spec", "--system", "--rootless"},
		{"--root", root, "spec", "--system", "--ram", "lots"},
		{"--root", root, "spec", "--system", "--cpus", "-1"},
		{"--root", root, "stop", "--timeout", "soon", "id"},
		{"--root", root, "checkpoint", "--manage-cgroups-mode", "lax", "id"},
	} {
		if err := newApp().Run(context.Background(), append([]string{"vzrun"}, args...)); exitCode(err) != codeUsage {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "2m": 2 * time.Minute, "15": 15 * time.Second, "0": 0, "1.5s": 1500 * time.Millisecond,
		"": -1, "-1": -1, "-5s": -1, "soon": -1, "1 s": -1,
	} {
		got, err := parseTimeout("stop", s)
		if (want < 0) != (err != nil) || (err == nil && got != want) {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestFinalErrorIsLoggedOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	t.Cleanup(logPlainlyToStderr)
	if err := configureLog(file, "json", false); err != nil {
		t.Fatal(err)
	}
	if code := report(&libvz.Error{Op: "start", ID: "a", Err: libvz.ErrBusy}); code != codeBusy {
		t.Errorf("exit code %d, want %d", code, codeBusy)
	}
	report(guestExit(3))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(data); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, `{"level":"error","msg":"`) {
		t.Errorf("the log holds %q, want one error", got)
	}
}

func TestPlainFormatter(t *testing.T) {
	for _, test := range []struct {
		level logrus.Level
		want  string
	}{
		{logrus.ErrorLevel, "vzrun: no? ?rootfs a=1? b=2\n"},
		{logrus.WarnLevel, "vzrun: warning: no? ?rootfs a=1? b=2\n"},
	} {
		entry := &logrus.Entry{Level: test.level, Message: "no\x1b \u009brootfs\n", Data: logrus.Fields{"b": 2, "a": "1\x07"}}
		got, err := plainFormatter{}.Format(entry)
		if err != nil || string(got) != test.want {
			t.Errorf("%q, %v, want %q", got, err, test.want)
		}
	}
}

func TestProgressLine(t *testing.T) {
	for _, test := range []struct {
		event libvz.Event
		want  string
	}{
		{libvz.Event{ID: "web", Step: "freeze"}, "web: freeze, 2 s"},
		{libvz.Event{ID: "web", Step: "dump", Done: 5 << 20}, "web: dump 5MiB, 2 s"},
		{libvz.Event{ID: "web", Step: "dump", Done: 5 << 20, Total: 10 << 20}, "web: dump 50% of 10MiB, 2 s"},
		{libvz.Event{ID: "web", Step: "dump", Done: 20, Total: 10}, "web: dump 100% of 10B, 2 s"},
		{libvz.Event{ID: "web", Step: "copying memory", Round: 1}, "web: copying memory 1, 2 s"},
		{libvz.Event{ID: "web", Step: "copying memory", Round: 2, Pages: 1200, Total: 5 << 20}, "web: copying memory 2, 1200 pages, 2 s"},
	} {
		if got := progressLine(test.event, 2*time.Second); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
	long := libvz.Event{ID: strings.Repeat("i", 200), Step: strings.Repeat("s", 200), Done: 1 << 60, Total: 1 << 61}
	if got := progressLine(long, time.Hour); len(got) >= 80 {
		t.Errorf("%q has %d columns", got, len(got))
	}
}

func TestFilterByPid(t *testing.T) {
	table := "UID   PID CMD\nroot    1 init\nroot   12 sh -c 1\nroot  112 sleep\n"
	var out bytes.Buffer
	if err := filterByPid(&out, table, []int{12, 112}); err != nil {
		t.Fatal(err)
	}
	if want := "UID   PID CMD\nroot   12 sh -c 1\nroot  112 sleep\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	if err := filterByPid(&out, "USER CMD\nroot sh\n", []int{1}); exitCode(err) != codeUsage {
		t.Errorf("a table without PID: %v, want a usage error", err)
	}
}

func TestJudgeReadiness(t *testing.T) {
	if err := judgeReadiness("a", libvz.Readiness{State: "running"}); err != nil {
		t.Errorf("running: %v", err)
	}
	degraded := libvz.Readiness{State: "degraded", Failed: []libvz.FailedUnit{{Name: "x.service"}, {Name: "y.socket"}}}
	err := judgeReadiness("a", degraded)
	if exitCode(err) != codeError || !strings.Contains(err.Error(), "x.service, y.socket") || !strings.Contains(hintOf(err), "x.service") {
		t.Errorf("degraded: %v with hint %q", err, hintOf(err))
	}
}
