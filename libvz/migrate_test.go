//go:build !lean

package libvz

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

func TestSharedMappings(t *testing.T) {
	const maps = `55d0c0000000-55d0c0001000 r--p 00000000 08:01 1234                       /usr/bin/true
7f0000000000-7f0000001000 rw-s 00000000 08:01 1235                       /var/log/journal/a b/system.journal
7f0000001000-7f0000002000 r--s 00000000 08:01 1236                       /var/lib/read only
7f0000002000-7f0000003000 rw-p 00000000 08:01 1237                       /var/lib/private
7f0000003000-7f0000004000 rw-s 00000000 00:01 1238                       /memfd:x (deleted)
7f0000004000-7f0000005000 rw-s 00000000 00:01 1239                       anon_inode:[perf_event]
7f0000005000-7f0000006000 rwxs 00000000 08:01 1240                       /odd\012name
7f0000006000-7f0000007000 rw-s 00000000 00:00 0
7f0000007000-7f0000008000 rw-s 00000000 08:01 1241                       /gone (deleted)
`
	got, err := parseSharedMappings(strings.NewReader(maps))
	want := []string{"var/log/journal/a b/system.journal", "odd\nname"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestOnlyTheRsyncThatIsMeant(t *testing.T) {
	good := []string{"vzrun", "rsync", "--server", "-lHogDtpAXrSxe.iLsfxCIvu", "-@-1", "--delete-during", "--numeric-ids", ".", "./"}
	got, err := serverArgs(good)
	want := []string{"--server", "-lHogDtpAXrSxe.iLsfxCIvu", "-@-1", "--delete-during", "--numeric-ids", ".", "./"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	elsewhere := slices.Clone(good)
	elsewhere[len(elsewhere)-1] = "/etc"
	if got, err := serverArgs(elsewhere); err != nil || got[len(got)-1] != "./" {
		t.Errorf("another place: %q, %v", got, err)
	}
	for _, bad := range [][]string{
		nil,
		{"vzrun", "sh", "-c", "true", ".", "./"},
		{"vzrun", "rsync", "--server", "--sender", "-re.x", ".", "/"},
		{"vzrun", "rsync", "--server", "-sre.iLsfx", ".", "./"},
		{"vzrun", "rsync", "--server", "-re.x", "--log-file=/etc/passwd", ".", "./"},
		{"vzrun", "rsync", "--server", "-re.x", "--delete-during\n--x", ".", "./"},
		{"vzrun", "rsync", "--daemon", "-re.x", ".", "./"},
		{"vzrun", "rsync", "--server", "-re.x", "./", "./"},
	} {
		if got, err := serverArgs(bad); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

func TestConfigIsFittedToTheHost(t *testing.T) {
	const config = `{"ociVersion":"1.2.0","root":{"path":"/srv/x","readonly":true},"linux":{"cgroupsPath":"/a","x":1},"other":[1]}`
	for _, test := range []struct {
		shared             bool
		cgroup, root, want string
	}{
		{false, "", "rootfs", "/a"},
		{false, "/p/web", "rootfs", "/p/web"},
		{true, "", "/srv/x", "/a"},
	} {
		data, err := rewriteConfig([]byte(config), test.shared, test.cgroup, "")
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Root struct {
				Path     string
				Readonly bool
			}
			Linux struct {
				CgroupsPath string
				X           int
			}
			Other []int
		}
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if got.Root.Path != test.root || got.Linux.CgroupsPath != test.want || !got.Root.Readonly || got.Linux.X != 1 || len(got.Other) != 1 {
			t.Errorf("%v: %s", test, data)
		}
	}
	for _, bad := range []string{"", "[]", `{"root":1}`, "null x"} {
		if _, err := rewriteConfig([]byte(bad), false, "/x", ""); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestReceivedCgroup(t *testing.T) {
	for _, test := range []struct {
		was, parent string
		systemd     bool
		want        string
	}{
		{"", "", false, ""},
		{"", "", true, ""},
		{"/a/b", "", false, ""},
		{"/a/b", "", true, "machine.slice:vzrun:web"},
		{"machine.slice:vzrun:old", "", true, ""},
		{"machine.slice:vzrun:old", "", false, "/web"},
		{"machine.slice:vzrun:old", "guests", false, "/guests/web"},
		{"/a/b", "/guests/../../x", false, "/x/web"},
		{"/a/b", "machine.slice", true, "machine.slice:vzrun:web"},
	} {
		if got := receivedCgroup(test.was, test.parent, "web", test.systemd); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func TestImagesStayInTheirDirectory(t *testing.T) {
	pack := func(headers ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, h.Size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Size: 3, Mode: 0o600} }
	manifest := file(manifestName)
	dir := t.TempDir()
	if n, err := readImages(bytes.NewReader(pack(file("core-1.img"), manifest)), dir); n != 6 || err != nil {
		t.Errorf("good images: %d, %v", n, err)
	}
	for name, data := range map[string][]byte{
		"no manifest": pack(file("core-1.img")),
		"a path":      pack(file("../core-1.img"), manifest),
		"absolute":    pack(file("/tmp/core-1.img"), manifest),
		"no image":    pack(file("core-1"), manifest),
		"twice":       pack(file("a.img"), file("a.img"), manifest),
		"a link":      pack(&tar.Header{Name: "a.img", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}, manifest),
		"a folder":    pack(&tar.Header{Name: "a.img", Typeflag: tar.TypeDir}, manifest),
		"cut off":     pack(file("a.img"), manifest)[:700],
		"rubbish":     bytes.Repeat([]byte("rubbish "), 1000),
	} {
		if n, err := readImages(bytes.NewReader(data), t.TempDir()); err == nil {
			t.Errorf("%s: %d bytes were taken", name, n)
		}
	}
	// What lies there is not written through.
	victim := filepath.Join(t.TempDir(), "victim")
	dir = t.TempDir()
	if err := os.Symlink(victim, filepath.Join(dir, "a.img")); err != nil {
		t.Fatal(err)
	}
	if _, err := readImages(bytes.NewReader(pack(file("a.img"), manifest)), dir); err == nil {
		t.Error("a link was followed")
	}
}

// TestAnOlderPeerIsNotAskedForWhatItDoesNotKnow: an offer says no more than it must,
// and one that says too much is refused with a remedy.
func TestAnOlderPeerIsNotAskedForWhatItDoesNotKnow(t *testing.T) {
	type olderOffer struct {
		Token  string          `json:"token"`
		ID     string          `json:"id"`
		NewID  string          `json:"new_id"`
		Mode   string          `json:"mode"`
		Bundle string          `json:"bundle"`
		Config json.RawMessage `json:"config"`
		Arch   string          `json:"arch"`
		Kernel string          `json:"kernel"`
		Criu   int             `json:"criu"`
		Memory int64           `json:"memory"`
		Disk   int64           `json:"disk"`
	}
	for compress, understood := range map[string]bool{"": true, CompressZstd: false} {
		body, err := json.Marshal(offer{Mode: ModeCold, Config: json.RawMessage("{}"), Compress: compress})
		if err != nil {
			t.Fatal(err)
		}
		err = (&wire.Message{Kind: wire.Offer, Body: body}).Decode(&olderOffer{})
		if understood != (err == nil) {
			t.Errorf("compress %q: %v", compress, err)
		}
		if err == nil {
			continue
		}
		// As the older one reports it, and as we show that.
		said := abort(err)
		if h := hintOf(explainWire(&said)); h != sameVersion {
			t.Errorf("hint %q", h)
		}
	}
	off := wire.Aborted{Reason: "something else"}
	if h := hintOf(explainWire(&off)); h == sameVersion || h == "" {
		t.Errorf("hint %q", h)
	}
}

func hintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

func TestRecordsAreNamedByTokens(t *testing.T) {
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	record, err := recordOf(dir, token)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := record.read(); err != nil || r.State != "" {
		t.Errorf("none: %v, %v", r, err)
	}
	if err := record.write(&migrationRecord{Token: token, ID: "web", State: recordCommitted}); err != nil {
		t.Fatal(err)
	}
	if r, err := record.read(); err != nil || r.State != recordCommitted || r.ID != "web" {
		t.Errorf("got %v, %v", r, err)
	}
	for _, bad := range []string{"", "../x", strings.Repeat("0", 31), strings.Repeat("g", 32), token + "/x", token + "\n"} {
		if p, err := recordOf(dir, bad); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %s, %v", bad, p, err)
		}
	}
}
