package criu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// route is a netlink message of a route with flags, and with hops that have some.
func route(flags uint32, hops ...byte) []byte {
	e := binary.NativeEndian
	var multipath []byte
	for _, h := range hops {
		multipath = append(e.AppendUint16(multipath, 8), h, 0)
		multipath = e.AppendUint32(multipath, 3)
	}
	attrs := e.AppendUint32([]byte{8, 0, 4, 0}, 7) // RTA_OIF
	if len(hops) > 0 {
		attrs = append(e.AppendUint16(e.AppendUint16(attrs, uint16(4+len(multipath))), 9), multipath...)
	}
	m := e.AppendUint32(nil, uint32(28+len(attrs)))
	m = append(e.AppendUint16(m, 24), make([]byte, 10+8)...)
	return append(e.AppendUint32(m, flags), attrs...)
}

func image(messages ...[]byte) []byte {
	head := binary.NativeEndian.AppendUint32([]byte("CRIU1234"), routesMagic)
	return append(head, bytes.Join(messages, nil)...)
}

func TestReviveRoutes(t *testing.T) {
	const live = 0x4 // RTNH_F_ONLINK
	whole := image(route(live), route(live, 4))
	for name, data := range map[string][]byte{
		"route": image(route(live|16), route(live, 4)),
		"hop":   image(route(live), route(live, 4|1|16)),
		"all":   image(route(live|1|16), route(live|16, 4|16)),
	} {
		if !reviveRoutes(data) || !bytes.Equal(data, whole) {
			t.Errorf("%s: % x", name, data)
		}
	}
	// What is no such image stays as it is, and makes no trouble.
	for _, data := range [][]byte{whole, nil, []byte("CRIU"), route(16), image([]byte{1, 0, 0, 0}), image(route(0), []byte{255, 255, 255, 255}), image(route(16))[:30]} {
		before := bytes.Clone(data)
		if reviveRoutes(data) || !bytes.Equal(data, before) {
			t.Errorf("changed: % x", before)
		}
	}
}

func TestReviveRoutesOfImages(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"route-9.img", "route6-9.img", "ifaddr-9.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), image(route(16)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := ReviveRoutes(dir); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string]uint32{"route-9.img": 0, "route6-9.img": 0, "ifaddr-9.img": 16} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(data, image(route(flags))) {
			t.Errorf("%s: % x, %v", name, data, err)
		}
	}
	if err := ReviveRoutes(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no images: %v", err)
	}
}
