package main

import (
	"bufio"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vzrun/vzrun/libvz"
)

func overviewOf(id string, created time.Time, l *libvz.Load) libvz.Overview {
	return libvz.Overview{State: libvz.State{ID: id, Status: "running", Created: created}, Load: l}
}

func TestCompareSamples(t *testing.T) {
	at := time.Unix(1000, 0)
	before := topSample{at, []libvz.Overview{
		overviewOf("same", at, &libvz.Load{CPU: time.Second, Read: 100, Written: 1000}),
		overviewOf("again", at, &libvz.Load{CPU: time.Hour}),
		overviewOf("less", at, &libvz.Load{CPU: time.Second, Read: 100}),
		overviewOf("gone", at, &libvz.Load{}),
	}}
	after := topSample{at.Add(2 * time.Second), []libvz.Overview{
		overviewOf("same", at, &libvz.Load{CPU: 4 * time.Second, Read: 300, Written: 1000, Memory: 7, Tasks: 3}),
		overviewOf("again", at.Add(time.Second), &libvz.Load{CPU: time.Second}),
		overviewOf("less", at, &libvz.Load{CPU: 2 * time.Second, Read: 50}),
		overviewOf("new", at, &libvz.Load{CPU: time.Second}),
		overviewOf("ended", at, nil),
	}}
	r := compareSamples(before, after)
	if r.Interval != 2 || r.Stopped != 1 || len(r.Containers) != 4 {
		t.Fatalf("got %+v", r)
	}
	rows := map[string]topRow{}
	for _, c := range r.Containers {
		rows[c.ID] = c
	}
	same := rows["same"]
	if *same.CPU != 150 || *same.Read != 100 || *same.Written != 0 || same.Memory != 7 || same.Tasks != 3 || same.Used != 4 {
		t.Errorf("same: got %+v", same)
	}
	if rows["again"].CPU != nil || rows["new"].CPU != nil {
		t.Error("rates without two samples of the same container")
	}
	if *rows["less"].Read != 0 || *rows["less"].CPU != 50 {
		t.Errorf("less: got %+v", rows["less"])
	}
	if first := compareSamples(topSample{}, after); first.Interval != 0 || first.Containers[0].CPU != nil {
		t.Errorf("a first sample has rates: %+v", first)
	}
}

func rowsOf() []topRow {
	v := func(n float64) *float64 { return &n }
	return []topRow{
		{ID: "a", CPU: v(1), Memory: 30, Tasks: 2, Uptime: 9},
		{ID: "b", CPU: v(3), Memory: 10, Tasks: 2, Read: v(1), Uptime: 8},
		{ID: "c", Memory: 20, Tasks: 9, Written: v(2), Uptime: 7},
	}
}

func TestArrange(t *testing.T) {
	for _, c := range []struct {
		view topView
		want string
	}{
		{topView{sort: "cpu"}, "bac"},
		{topView{sort: "cpu", reverse: true}, "cab"},
		{topView{sort: "memory"}, "acb"},
		{topView{sort: "tasks"}, "cab"},
		{topView{sort: "io"}, "cba"},
		{topView{sort: "uptime"}, "abc"},
		{topView{sort: "id"}, "abc"},
		{topView{sort: "id", reverse: true}, "cba"},
	} {
		rows := rowsOf()
		c.view.arrange(rows)
		if got := rows[0].ID + rows[1].ID + rows[2].ID; got != c.want {
			t.Errorf("%+v: got %s, want %s", c.view, got, c.want)
		}
	}
}

func TestScreenFits(t *testing.T) {
	r := topReport{Time: time.Unix(0, 0), Containers: rowsOf()}
	for _, size := range [][2]int{{80, 24}, {10, 5}, {1, 1}, {120, 4}, {80, 2}} {
		v := topView{sort: "id", skip: 100}
		lines := v.screen(r, size[0], size[1])
		if len(lines) > size[1] {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if len(l) > size[0] {
				t.Errorf("%v: line of %d: %q", size, len(l), l)
			}
		}
	}
	v := topView{sort: "id", skip: 1}
	lines := v.screen(r, 80, 5)
	if !strings.HasPrefix(lines[topHeaderLine], "ID ") || !strings.HasPrefix(lines[4], "b ") {
		t.Errorf("scrolled by one: %q", lines)
	}
}

func TestKeys(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("m\x1b[A\x1b[6~\x1b[15~\x1bOBq"))
	var got []key
	for {
		k, err := readKey(r)
		if err != nil {
			break
		}
		got = append(got, k)
	}
	if want := []key{'m', keyUp, keyPageDown, 0, keyDown, 'q'}; !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	v := topView{sort: "cpu", skip: 3}
	if v.press('m') || v.sort != "memory" || v.skip != 0 {
		t.Errorf("m: %+v", v)
	}
	if v.press('r'); !v.reverse {
		t.Error("r does not reverse")
	}
	if v.press(keyPageDown); v.skip != 10 {
		t.Errorf("page down: %+v", v)
	}
	if v.press('z') || v.press(0) || !v.press('q') || !v.press(3) {
		t.Error("q and Ctrl-C alone end it")
	}
}

func TestParseDelay(t *testing.T) {
	for s, want := range map[string]time.Duration{"2": 2 * time.Second, "0.5": 500 * time.Millisecond, "100ms": 100 * time.Millisecond, "1m": time.Minute, "0": 0, "-1": 0, "x": 0, "": 0, "NaN": 0, "1e99": 0} {
		got, err := parseDelay(s)
		if got != want && err == nil || want == 0 && err == nil || want != 0 && err != nil {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
}
