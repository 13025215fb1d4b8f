package vnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// askTime is how long neighbours have for an answer. Those of RFC 5227
	// have seconds, in which no guest starts; on one segment it takes a
	// millisecond.
	askTime = 200 * time.Millisecond
	// askRounds is how often somebody must answer to be believed: a container
	// that has just ended may do so until the kernel has taken its network down.
	askRounds = 3
)

// Questions are those for the addresses of bridged Nets, to the neighbours.
type Questions struct {
	segments []*segment
	deadline time.Time
}

// segment is a bridge, as one Net is to be on it.
type segment struct {
	net     Net
	index   int
	mac     net.HardwareAddr // of the bridge, which asks
	sockets []int
	users   map[netip.Addr]net.HardwareAddr
}

// Ask asks who has the addresses of bridged Nets, for the time in which the
// container is made; Answer tells what came. It asks through the bridge itself,
// hence in the VLAN that the bridge is in. A bridge that is down, or is not
// there, is not asked, nor one without ports. The Questions are to be closed.
func Ask(nets []Net) (*Questions, error) {
	q := &Questions{}
	h, err := newHost()
	if err != nil {
		return q, err
	}
	defer h.Close()
	links, err := retry(h.LinkList)
	if err != nil {
		return q, fmt.Errorf("links of the host: %w", err)
	}
	for _, n := range nets {
		if n.Kind != KindBridge || len(n.IPs) == 0 {
			continue
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Name != n.Master || l.Type() != "bridge" || a.Flags&net.FlagUp == 0 {
				continue
			}
			s := &segment{net: n, index: a.Index, mac: a.HardwareAddr, users: map[netip.Addr]net.HardwareAddr{}}
			for _, port := range links {
				if port.Attrs().MasterIndex == a.Index && s.sockets == nil {
					q.segments = append(q.segments, s)
					if err := s.open(); err != nil {
						return q, fmt.Errorf("ask on bridge %s: %w", a.Name, err)
					}
				}
			}
		}
	}
	return q, q.send(nil)
}

func (s *segment) open() error {
	for _, kind := range []uint16{typeARP, typeIPv6} {
		if len(s.net.ips(kind == typeARP)) == 0 {
			continue
		}
		protocol := kind<<8 | kind>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s.sockets = append(s.sockets, fd)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: s.index}); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	return nil
}

// send asks for all addresses, or for those that somebody seemed to use.
func (q *Questions) send(again map[netip.Addr]bool) error {
	q.deadline = time.Now().Add(askTime)
	for _, s := range q.segments {
		var frames [][]byte
		for _, p := range s.net.IPs {
			switch ip := p.Addr(); {
			case again != nil && !again[ip]:
			case ip.Is4():
				frames = append(frames, arpProbe(s.mac, ip))
			default:
				frames = append(frames, neighborSolicit(s.mac, ip))
			}
		}
		if err := send(s.index, frames); err != nil {
			return fmt.Errorf("ask on bridge %s: %w", s.net.Master, err)
		}
	}
	return nil
}

// Answer of nil Questions is nil. Else it returns ErrAddressInUse, with the address and the MAC of its owner, if
// somebody went on to answer. It waits until those who were asked have had
// their time; where nobody was asked it returns nil at once.
func (q *Questions) Answer(ctx context.Context) error {
	if q == nil || len(q.segments) == 0 {
		return nil
	}
	for round := 1; ; round++ {
		if err := q.collect(ctx); err != nil {
			return err
		}
		again := map[netip.Addr]bool{}
		for _, s := range q.segments {
			for ip, mac := range s.users {
				if round == askRounds {
					return fmt.Errorf("%w: %s, by %s on bridge %s", ErrAddressInUse, ip, mac, s.net.Master)
				}
				again[ip] = true
			}
			clear(s.users)
		}
		if len(again) == 0 {
			return nil
		}
		if err := q.send(again); err != nil {
			return err
		}
	}
}

// collect reads until the deadline.
func (q *Questions) collect(ctx context.Context) error {
	for {
		left := time.Until(q.deadline)
		// What has come is read, however late we are.
		var polled []unix.PollFd
		for _, s := range q.segments {
			for _, fd := range s.sockets {
				polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
		}
		n, err := unix.Poll(polled, max(0, int(left/time.Millisecond)))
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, s := range q.segments {
			s.read()
		}
		if n <= 0 && err == nil || left <= 0 {
			return nil
		}
	}
}

// read takes what a socket has by now: a neighbour that sends without end must
// not keep us.
func (s *segment) read() {
	buf := make([]byte, 128)
	for _, fd := range s.sockets {
		for range 1024 {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			ip, mac, ok := userOf(buf[:n])
			// Our own MAC is that of our predecessor, which is not gone yet.
			if ok && !bytes.Equal(mac, s.net.MAC) && !bytes.Equal(mac, s.mac) && s.wants(ip) {
				s.users[ip] = slices.Clone(mac)
			}
		}
	}
}

func (s *segment) wants(ip netip.Addr) bool {
	return slices.ContainsFunc(s.net.IPs, func(p netip.Prefix) bool { return p.Addr() == ip })
}

// Close is idempotent.
func (q *Questions) Close() {
	if q == nil {
		return
	}
	for _, s := range q.segments {
		for _, fd := range s.sockets {
			unix.Close(fd)
		}
	}
	q.segments = nil
}

// userOf returns the address that the sender of a frame uses, and its MAC: of
// any ARP packet, and of a neighbour advertisement.
func userOf(f []byte) (netip.Addr, net.HardwareAddr, bool) {
	const ethernet, arp, ipv6, advert = 14, 28, 40, 24
	if len(f) < ethernet+arp {
		return netip.Addr{}, nil, false
	}
	switch kind := binary.BigEndian.Uint16(f[12:]); {
	case kind == typeARP && bytes.Equal(f[14:20], []byte{0, 1, 8, 0, 6, 4}):
		ip, _ := netip.AddrFromSlice(f[28:32])
		return ip, f[22:28], !ip.IsUnspecified()
	case kind == typeIPv6 && len(f) >= ethernet+ipv6+advert && f[20] == protoICMPv6 && f[21] == 255 && f[54] == neighAdv:
		ip, _ := netip.AddrFromSlice(f[62:78])
		return ip, f[6:12], true
	}
	return netip.Addr{}, nil, false
}

// arpProbe is of RFC 5227, section 2.1.1: the sender has no address.
func arpProbe(mac net.HardwareAddr, ip netip.Addr) []byte {
	f := frame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac, typeARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths, request
	f = append(append(f, mac...), make([]byte, 4+6)...)
	return append(f, ip.AsSlice()...)
}

// neighborSolicit is that of duplicate address detection, RFC 4862, section 5.4.2.
func neighborSolicit(mac net.HardwareAddr, ip netip.Addr) []byte {
	to := netip.MustParseAddr("ff02::1:ff00:0").As16()
	bits := ip.As16()
	copy(to[13:], bits[13:])
	icmp := append([]byte{neighSolicit, 0, 0, 0, 0, 0, 0, 0}, bits[:]...)
	return icmpFrame(net.HardwareAddr{0x33, 0x33, to[12], to[13], to[14], to[15]}, mac,
		netip.IPv6Unspecified(), netip.AddrFrom16(to), icmp)
}
