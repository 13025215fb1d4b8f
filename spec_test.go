package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"": 0, "1024": 1024, "512M": 512 << 20, "2G": 2 << 30, "2g": 2 << 30, "1.5k": 1536, "1T": 1 << 40,
		"-1": -1, "lots": -1, "2X": -1, "M": -1,
	} {
		got, err := parseSize("ram", s)
		if (want < 0) != (err != nil) || (err == nil && got != want) {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestRootlessSpec(t *testing.T) {
	spec := appSpec(true)
	makeRootless(spec, 1000, 100)
	if len(spec.Linux.UIDMappings) != 1 || spec.Linux.UIDMappings[0].HostID != 1000 || spec.Linux.GIDMappings[0].HostID != 100 {
		t.Errorf("id maps %v and %v", spec.Linux.UIDMappings, spec.Linux.GIDMappings)
	}
	var kinds []specs.LinuxNamespaceType
	for _, ns := range spec.Linux.Namespaces {
		kinds = append(kinds, ns.Type)
	}
	if got := fmt.Sprint(kinds); strings.Contains(got, "network") || !strings.Contains(got, "user") || !strings.Contains(got, "cgroup") {
		t.Errorf("namespaces %v", got)
	}
	for _, m := range spec.Mounts {
		if strings.Contains(strings.Join(m.Options, ","), "gid=") {
			t.Errorf("%s still has %q", m.Destination, m.Options)
		}
		if m.Destination == "/sys" && (m.Source != "/sys" || m.Options[0] != "rbind") {
			t.Errorf("/sys is %+v", m)
		}
	}
}

func TestSpecRefusesToOverwrite(t *testing.T) {
	bundle := t.TempDir()
	t.Chdir(bundle) // the verb goes there, and the test must come back
	args := []string{"vzrun", "spec", "--bundle", bundle}
	if err := newApp().Run(context.Background(), args); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(bundle, "config.json"))
	err := newApp().Run(context.Background(), args)
	after, _ := os.ReadFile(filepath.Join(bundle, "config.json"))
	if exitCode(err) != codeError || hintOf(err) == "" || !bytes.Equal(before, after) {
		t.Errorf("second spec: %v with hint %q", err, hintOf(err))
	}
}
