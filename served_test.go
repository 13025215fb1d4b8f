package main

import (
	"slices"
	"testing"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestHoldsConsole(t *testing.T) {
	system := map[string]string{"org.vzrun.guest": "systemd"}
	// The tests' own stdin and stdout are not both terminals.
	for _, test := range []struct {
		name        string
		launch      launch
		terminal    bool
		annotations map[string]string
		want        bool
	}{
		{"a program", launch{}, false, nil, false},
		{"a program with a terminal", launch{}, true, nil, false},
		{"a program, asked for", launch{console: true}, false, nil, true},
		{"a system without a terminal", launch{}, false, system, false},
		{"a system with one in its config", launch{}, true, system, true},
		{"a system, asked for", launch{console: true}, false, system, true},
		{"a detached system", launch{detach: true}, false, system, false},
		{"a detached system with one in its config", launch{detach: true}, true, system, false},
		{"a detached system, asked for", launch{detach: true, console: true}, false, system, true},
		{"an engine's system", launch{detach: true, consoleSocket: "s"}, true, system, false},
	} {
		spec := &specs.Spec{Process: &specs.Process{Terminal: test.terminal}, Annotations: test.annotations}
		if got := test.launch.holdsConsole(spec); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestAdoptTerminal(t *testing.T) {
	for kind, want := range map[string]string{"xterm": "TERM=xterm", "": "TERM=linux", "../../etc/passwd": "TERM=linux", "a b": "TERM=linux"} {
		t.Setenv("TERM", kind)
		spec := &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin", "TERM=linux", "container=vzrun"}}}
		adoptTerminal(spec, &terminal{ours: deadConsole{}})
		if !spec.Process.Terminal || !slices.Contains(spec.Process.Env, want) || len(spec.Process.Env) != 3 {
			t.Errorf("TERM=%q: %v", kind, spec.Process)
		}
	}
}

// deadConsole is a terminal that has no size.
type deadConsole struct{ console.Console }

func (deadConsole) Size() (console.WinSize, error) { return console.WinSize{}, nil }
