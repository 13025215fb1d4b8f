package criu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// routesMagic begins what `ip route save` writes (ip/iproute.c).
	routesMagic = 0x45311224
	// maxRoutes bounds a routes image; 100000 routes have some ten megabytes.
	maxRoutes = 256 << 20
	linkFlags = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN
)

// ReviveRoutes takes the marks of interfaces without a carrier from the routes in
// a directory of images. The kernel sets them when it lists routes, and refuses
// a route that has them, so that a guest with an idle bridge, such as Docker's,
// could not be restored. It sets them again by itself.
func ReviveRoutes(dir string) error {
	for _, pattern := range []string{"route-*.img", "route6-*.img"} {
		images, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, image := range images {
			if err := reviveFile(image); err != nil {
				return fmt.Errorf("routes image %s: %w", filepath.Base(image), err)
			}
		}
	}
	return nil
}

func reviveFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRoutes))
	if err != nil {
		return err
	}
	if !reviveRoutes(data) {
		return nil
	}
	_, err = f.WriteAt(data, 0)
	return err
}

// reviveRoutes changes data in place, and tells whether it did. After CRIU's own
// header and the magic number there are netlink messages, rtnetlink(7).
func reviveRoutes(data []byte) bool {
	magic := binary.NativeEndian.AppendUint32(nil, routesMagic)
	start := bytes.Index(data[:min(len(data), 16)], magic)
	if start < 0 {
		return false
	}
	changed := false
	for rest := data[start+len(magic):]; len(rest) >= unix.SizeofNlMsghdr+unix.SizeofRtMsg; {
		size := int(binary.NativeEndian.Uint32(rest))
		if size < unix.SizeofNlMsghdr || size > len(rest) {
			break
		}
		if binary.NativeEndian.Uint16(rest[4:]) == unix.RTM_NEWROUTE && size >= unix.SizeofNlMsghdr+unix.SizeofRtMsg {
			route := rest[unix.SizeofNlMsghdr:size]
			// rtm_flags is the last of struct rtmsg.
			flags := route[unix.SizeofRtMsg-4 : unix.SizeofRtMsg]
			if old := binary.NativeEndian.Uint32(flags); old&linkFlags != 0 {
				binary.NativeEndian.PutUint32(flags, old&^linkFlags)
				changed = true
			}
			changed = reviveHops(route[unix.SizeofRtMsg:]) || changed
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	return changed
}

// reviveHops does so for the hops of a route that has several of them.
func reviveHops(attrs []byte) bool {
	changed := false
	for len(attrs) >= unix.SizeofRtAttr {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
		if size < unix.SizeofRtAttr || size > len(attrs) {
			break
		}
		if kind == unix.RTA_MULTIPATH {
			for hops := attrs[unix.SizeofRtAttr:size]; len(hops) >= unix.SizeofRtNexthop; {
				// struct rtnexthop: length, then a byte of flags.
				n := int(binary.NativeEndian.Uint16(hops))
				if n < unix.SizeofRtNexthop || n > len(hops) {
					break
				}
				changed = changed || hops[2]&linkFlags != 0
				hops[2] &^= linkFlags
				hops = hops[min(len(hops), (n+3)&^3):]
			}
		}
		attrs = attrs[min(len(attrs), (size+3)&^3):]
	}
	return changed
}
