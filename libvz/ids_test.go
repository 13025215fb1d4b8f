package libvz

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

func TestFreeIDs(t *testing.T) {
	const whole = lastID + idRange - firstID
	all := []idSpan{{firstID, whole}}
	for _, c := range []struct {
		name         string
		spans, taken []idSpan
		start        uint32
		want         uint64 // 0 = none
	}{
		{"the first", all, nil, 0, firstID},
		{"one that only touches the slot takes it too", all, []idSpan{{firstID + idRange - 1, 1}}, 0, firstID + idRange},
		{"the search wraps around", all, []idSpan{{lastID, idRange}}, (lastID - firstID) / idRange, firstID},
		{"nothing is free", all, []idSpan{{0, 1 << 32}}, 7, 0},
		{"ranges begin where the pool does", []idSpan{{100000, 2 * idRange}}, nil, 1, 100000 + idRange},
		{"the pool is too small", []idSpan{{100000, idRange - 1}}, nil, 0, 0},
		{"the second part of the pool", []idSpan{{100000, idRange}, {900000, idRange}}, []idSpan{{100000, 1}}, 0, 900000},
		{"not the host's root", []idSpan{{0, 2 * idRange}}, nil, 0, idRange},
		{"not the invalid id", []idSpan{{math.MaxUint32 + 1 - idRange, idRange}}, nil, 0, 0},
		{"no pool", nil, nil, 3, 0},
	} {
		got, ok := freeIDs(c.spans, c.taken, c.start)
		if got != c.want || ok != (c.want != 0) {
			t.Errorf("%s: %d, %v", c.name, got, ok)
		}
	}
}

func TestIDPools(t *testing.T) {
	line := func(user string, first, size uint64) subordinate { return subordinate{user, idSpan{first, size}} }
	everything := idSpan{firstID, lastID + idRange - firstID}
	for _, c := range []struct {
		name       string
		uids, gids []subordinate
		want       []idPool
	}{
		{"nothing is said", nil, nil, []idPool{{}, {spans: []idSpan{everything}}}},
		{
			"vzrun's is the only one, as far as users and groups agree",
			[]subordinate{line("vzrun", 200000, 100000), line("ann", 500000, 9)},
			[]subordinate{line("vzrun", 250000, 100000)},
			[]idPool{{spans: []idSpan{{250000, 50000}}, taken: []idSpan{{500000, 9}}}},
		},
		{"users without groups", []subordinate{line("vzrun", 200000, 100000)}, nil, []idPool{{}}},
		{
			"root's is better than nobody's",
			[]subordinate{line("root", 1000000, 70000)},
			[]subordinate{line("0", 1000000, 70000)},
			[]idPool{
				{spans: []idSpan{{1000000, 70000}}},
				{spans: []idSpan{everything}, taken: []idSpan{{1000000, 70000}, {1000000, 70000}}},
			},
		},
	} {
		if got := idPools(c.uids, c.gids); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestParseSubordinate(t *testing.T) {
	got := parseSubordinate("root:100000:65536\n# no\nbad:x:1\n\nu:200000:1000\nnone:1:0\nlong:1:4294967296\n")
	if want := []subordinate{{"root", idSpan{100000, 65536}}, {"u", idSpan{200000, 1000}}}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestParseIDMap(t *testing.T) {
	for text, want := range map[string][]idSpan{
		"         0          0 4294967295\n":     nil,
		"         0       1000          1\n":     nil,
		"0 1048576 65536\n70000 5000000 1000\n":  {{1048576, 65536}, {5000000, 1000}},
		"0 1048576\nnonsense\n0 -1 7\n0 7 x 9\n": nil,
	} {
		if got := parseIDMap(text); !slices.Equal(got, want) {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzSubordinate(f *testing.F) {
	f.Add("root:100000:65536\nvzrun:4294967295:4294967295\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := parseSubordinate(text)
		for _, p := range idPools(lines, lines) {
			base, ok := freeIDs(p.spans, p.taken, uint32(len(text)))
			slot := idSpan{base, idRange}
			if ok && (base == 0 || base+idRange > math.MaxUint32 || slices.ContainsFunc(p.taken, slot.overlaps)) {
				t.Fatalf("%d of %v", base, p)
			}
		}
	})
}

// claimedBundle makes a bundle whose configuration names a range, as spec does.
func claimedBundle(t *testing.T, h *Host, dir string, wish idSpan) (idSpan, error) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := h.claimRange(dir, filepath.Join(dir, "rootfs"), wish)
	if err != nil {
		return got, err
	}
	ids := []specs.LinuxIDMapping{{HostID: uint32(got.first), Size: uint32(got.size)}}
	data, err := json.Marshal(specs.Spec{Linux: &specs.Linux{UIDMappings: ids, GIDMappings: ids}})
	if err != nil {
		t.Fatal(err)
	}
	return got, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

func TestClaimRange(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("ranges are root's to give")
	}
	dir := t.TempDir()
	h, err := Open(Options{Root: filepath.Join(dir, "state"), IDs: filepath.Join(dir, "ids.json")})
	if err != nil {
		t.Fatal(err)
	}
	bundle := func(i int) string { return filepath.Join(dir, fmt.Sprint("b", i)) }
	const many = 50
	ranges := make([]idSpan, many)
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			var err error
			if ranges[i], err = claimedBundle(t, h, bundle(i), idSpan{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, r := range ranges {
		if slices.ContainsFunc(ranges[i+1:], r.overlaps) {
			t.Errorf("bundle %d shares %v", i, r)
		}
	}
	// By hand, what is another's is refused; what is free is not.
	if _, err := claimedBundle(t, h, bundle(many), ranges[0]); err == nil {
		t.Error("got another's range by hand")
	}
	// The claim lapses with the configuration, and with one that names another.
	if err := os.Remove(filepath.Join(bundle(0), "config.json")); err != nil {
		t.Fatal(err)
	}
	forgetWriters(t, h)
	if got, err := claimedBundle(t, h, bundle(many), ranges[0]); err != nil || got != ranges[0] {
		t.Errorf("the range of a bundle that is gone: %v, %v", got, err)
	}
	if err := os.Rename(filepath.Join(bundle(many), "config.json"), filepath.Join(bundle(1), "config.json")); err != nil {
		t.Fatal(err)
	}
	forgetWriters(t, h)
	if got, err := claimedBundle(t, h, bundle(many+1), ranges[1]); err != nil || got != ranges[1] {
		t.Errorf("a range that is named no longer: %v, %v", got, err)
	}
	// A configuration that is being edited keeps its range.
	if err := os.WriteFile(filepath.Join(bundle(2), "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	forgetWriters(t, h)
	if _, err := claimedBundle(t, h, bundle(many+2), ranges[2]); err == nil {
		t.Error("took the range of a configuration that cannot be read")
	}
}

// forgetWriters makes all claims look as if their processes had ended.
func forgetWriters(t *testing.T, h *Host) {
	t.Helper()
	record, err := h.lockIDs()
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	for i := range record.Claims {
		record.Claims[i].Pid, record.Claims[i].Start = 0, 0
	}
	if err := record.Save(); err != nil {
		t.Fatal(err)
	}
}

func TestAddClaims(t *testing.T) {
	ct := store.IDContainer{Root: "/r", ID: "a"}
	claims := []store.IDClaim{{First: 1000, Size: 10, Bundle: "/b"}, {First: 1000, Size: 10, Bundle: "/c"}}
	claims = addClaims(claims, []idSpan{{1000, 10}, {5000, 10}}, "/b", ct)
	again := addClaims(slices.Clone(claims), []idSpan{{1000, 10}, {5000, 10}}, "/b", ct)
	want := []store.IDClaim{
		{First: 1000, Size: 10, Bundle: "/b", Containers: []store.IDContainer{ct}},
		{First: 1000, Size: 10, Bundle: "/c"},
		{First: 5000, Size: 10, Bundle: "/b", Containers: []store.IDContainer{ct}},
	}
	if !reflect.DeepEqual(claims, want) || !reflect.DeepEqual(again, want) {
		t.Errorf("got %v, then %v", claims, again)
	}
}

func TestWayToRootfs(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 1048576, Size: 65536}}
	dir := func(mode, owner uint32) dirAccess {
		return dirAccess{path: fmt.Sprintf("%o-%d", mode, owner), mode: mode, owner: owner, gid: owner}
	}
	for _, c := range []struct {
		name   string
		way    []dirAccess
		closed string
		open   bool
	}{
		{"passable for all", []dirAccess{dir(0o755, 0), dir(0o711, 7), dir(0o755, 0)}, "", true},
		{"root's own", []dirAccess{dir(0o755, 0), dir(0o700, 0), dir(0o755, 0)}, "700-0", false},
		{"the guest's own", []dirAccess{dir(0o700, 1048576), dir(0o755, 0)}, "", false},
		{"another id of the guest's", []dirAccess{dir(0o700, 1048586), dir(0o755, 0)}, "", false},
		{"a user's own", []dirAccess{dir(0o700, 1000)}, "700-1000", false},
	} {
		if closed, open := closedTo(c.way, ids, ids), openToAll(c.way); closed != c.closed || open != c.open {
			t.Errorf("%s: closed %q, open %v", c.name, closed, open)
		}
	}
}
