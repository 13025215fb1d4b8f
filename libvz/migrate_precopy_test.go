//go:build !lean

package libvz

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

func TestRoundsComeInTheirOrder(t *testing.T) {
	for name, test := range map[string]struct {
		mode string
		had  int32
		args []string
		good bool
	}{
		"the first":            {ModePreCopy, 0, []string{"1"}, true},
		"the next":             {ModeHybrid, 4, []string{"5"}, true},
		"the last":             {ModeHybrid, maxRounds - 1, []string{strconv.Itoa(maxRounds)}, true},
		"too many":             {ModeHybrid, maxRounds, []string{strconv.Itoa(maxRounds + 1)}, false},
		"one again":            {ModePreCopy, 1, []string{"1"}, false},
		"one left out":         {ModePreCopy, 1, []string{"3"}, false},
		"written otherwise":    {ModePreCopy, 0, []string{"01"}, false},
		"a path":               {ModePreCopy, 0, []string{"../1"}, false},
		"no number":            {ModePreCopy, 0, nil, false},
		"two":                  {ModePreCopy, 0, []string{"1", "2"}, false},
		"not in mode lazy":     {ModeLazy, 0, []string{"1"}, false},
		"nor cold, nor others": {"other", 0, []string{"1"}, false},
	} {
		r := &reception{offer: &offer{Mode: test.mode}}
		r.rounds.Store(test.had)
		n, err := r.roundOf(test.args)
		if test.good != (err == nil && n == int(test.had)+1) || !test.good && !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

// received makes folders of images as they arrive, the last ones first.
func received(t *testing.T, manifests ...manifest) (dir string, r *reception) {
	t.Helper()
	dir = t.TempDir()
	for n, m := range manifests {
		folder := filepath.Join(dir, roundFolder(n))
		data, err := json.Marshal(m)
		if err == nil {
			err = os.MkdirAll(folder, 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, manifestName), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r = &reception{}
	r.rounds.Store(int32(len(manifests) - 1))
	return dir, r
}

func TestTheChainIsTheOneThatCame(t *testing.T) {
	good := []manifest{{Parent: "round-2"}, {PreDump: true}, {PreDump: true, Parent: "../round-1"}}
	dir, r := received(t, good...)
	if err := r.linkRounds(dir); err != nil {
		t.Fatal(err)
	}
	for folder, want := range map[string]string{"": "round-2", "round-2": "../round-1"} {
		if got, err := os.Readlink(filepath.Join(dir, folder, criu.ParentLink)); err != nil || got != want {
			t.Errorf("%q: %q, %v", folder, got, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "round-1", criu.ParentLink)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first round: %v", err)
	}
	// And it goes again as a whole.
	if err := errors.Join(removeRounds(dir), removeRounds(dir), removeRounds(filepath.Join(dir, "none"))); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != manifestName {
		t.Errorf("left: %v, %v", left, err)
	}

	dir, r = received(t, manifest{})
	if err := r.linkRounds(dir); err != nil {
		t.Errorf("no rounds: %v", err)
	}
	for name, bad := range map[string][]manifest{
		"a parent that did not come":        {{Parent: "round-1"}},
		"no parent, though there is one":    {{}, {PreDump: true}},
		"another one than the last":         {{Parent: "round-1"}, {PreDump: true}, {PreDump: true, Parent: "../round-1"}},
		"a way out":                         {{Parent: "round-2"}, {PreDump: true}, {PreDump: true, Parent: "../../other"}},
		"in circles":                        {{Parent: "round-2"}, {PreDump: true, Parent: "../round-2"}, {PreDump: true, Parent: "../round-1"}},
		"a round that is no pre-dump":       {{Parent: "round-1"}, {}},
		"a pre-dump that is to be restored": {{PreDump: true}},
	} {
		dir, r := received(t, bad...)
		if err := r.linkRounds(dir); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPagesThatWereSentTakeNoRoom(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 20
	files := map[string]int64{"pages-1.img": size, "pages-2.img": 0, "core-1.img": size}
	for name, n := range files {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := forgetPages(dir, files); err != nil {
		t.Fatal(err)
	}
	for name, n := range files {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Size != n {
			t.Errorf("%s has %d bytes, %v", name, st.Size, err)
		}
		if name == "pages-1.img" && st.Blocks > 0 {
			t.Errorf("%s takes %d blocks", name, st.Blocks)
		}
	}
}
