package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vzrun/vzrun/libvz"
)

func TestChosenColumns(t *testing.T) {
	for _, c := range []struct {
		output       string
		system, json bool
		want         string
	}{
		{"", false, false, "id,pid,status,bundle,created,owner"},
		{"", true, false, systemColumns},
		{"ip, id,ip", false, false, "ip,id"},
		{"id", true, true, "id"},
	} {
		got, err := chosenColumns(c.output, c.system, c.json)
		if err != nil {
			t.Fatal(err)
		}
		if names := namesOf(got); names != c.want {
			t.Errorf("%+v: got %s", c, names)
		}
	}
	all, err := chosenColumns("", true, true)
	if err != nil || len(all) != len(columns()) {
		t.Errorf("JSON has not all columns: %v, %v", namesOf(all), err)
	}
	for _, bad := range []string{"nope", "id,", ",", "ID"} {
		if _, err := chosenColumns(bad, false, false); exitCode(err) != codeUsage {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func namesOf(columns []column) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.name
	}
	return strings.Join(names, ",")
}

// A container of which nothing is known has every column, too.
func TestColumnsOfAnything(t *testing.T) {
	full := libvz.Overview{
		State: libvz.State{ID: "full", Pid: 7}, Init: "running", Uptime: 100 * time.Second,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Load:      &libvz.Load{Memory: 512 << 20, CPU: 1500 * time.Millisecond, CPUs: 1.5},
	}
	known := columns()
	var out strings.Builder
	if err := printTable(&out, known, []libvz.Overview{{}, full}, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.0.0.1,fd00::1", " 512MiB ", " 1.50 ", " 1.5 ", " 1m40s ", "MEMORY_LIMIT"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	data, err := json.Marshal(columnObjects(known, []libvz.Overview{full}))
	if err != nil {
		t.Fatal(err)
	}
	var back []map[string]any
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if len(back) != 1 || len(back[0]) != len(known) || back[0]["memory"] != float64(512<<20) || back[0]["os"] != nil {
		t.Errorf("got %s", data)
	}
	if !strings.HasPrefix(string(data), `[{"id":"full","pid":7,`) {
		t.Errorf("keys are not in the order of the columns: %s", data)
	}
}

func TestOrder(t *testing.T) {
	all := []libvz.Overview{
		{State: libvz.State{ID: "a", Pid: 30}},
		{State: libvz.State{ID: "b"}},
		{State: libvz.State{ID: "c", Pid: 4}},
	}
	for by, want := range map[string]string{"pid": "bca", "-pid": "acb", "id": "abc", "-id": "cba", "": "cba"} {
		r, err := parseOrder(by)
		if err != nil {
			t.Fatal(err)
		}
		if by == "" {
			all[0], all[2] = all[2], all[0]
		}
		before := all[0].ID + all[1].ID + all[2].ID
		r.sort(all)
		got := all[0].ID + all[1].ID + all[2].ID
		if by == "" {
			want = before
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", by, got, want)
		}
	}
	if _, err := parseOrder("nope"); exitCode(err) != codeUsage {
		t.Errorf("got %v", err)
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{sizeText(uint64(0)), "0B"},
		{sizeText(uint64(1536)), "1.5KiB"},
		{sizeText(uint64(1023)), "1023B"},
		{uptimeText(5.9), "5s"},
		{uptimeText(200.0), "3m20s"},
		{uptimeText(3600.0 * 4.05), "4h03m"},
		{uptimeText(86400.0*12 + 5*3600), "12d05h"},
		{secondsText(1.006), "1.01"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
