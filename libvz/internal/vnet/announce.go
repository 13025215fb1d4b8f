package vnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Announce tells the neighbours of bridged Nets where their addresses are now:
// switches and ARP tables may remember another place. It works in the network
// namespace of the calling thread, which must be the container's. The guest may
// have renamed its ends, so they are found by their MACs.
func Announce(nets []Net) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := retry(h.LinkList)
	if err != nil {
		return err
	}
	for _, n := range nets {
		if n.Kind != KindBridge {
			continue
		}
		for _, l := range links {
			if a := l.Attrs(); l.Type() == "veth" && a.HardwareAddr.String() == n.MAC.String() {
				if err := send(a.Index, announcements(n)); err != nil {
					return fmt.Errorf("announce %s: %w", a.Name, err)
				}
			}
		}
	}
	return nil
}

// AnnounceOwn does that for all addresses of veth interfaces that are up, as they
// are in the network namespace of the calling thread.
func AnnounceOwn() error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := retry(h.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "veth" || a.Flags&net.FlagUp == 0 || len(a.HardwareAddr) != 6 {
			continue
		}
		addrs, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		n := Net{MAC: a.HardwareAddr}
		for _, addr := range addrs {
			if ip, ok := netip.AddrFromSlice(addr.IP); ok {
				n.IPs = append(n.IPs, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			}
		}
		if err := send(a.Index, announcements(n)); err != nil {
			return fmt.Errorf("announce %s: %w", a.Name, err)
		}
	}
	return nil
}

func send(index int, frames [][]byte) error {
	// Protocol 0 receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, f := range frames {
		if err := unix.Sendto(fd, f, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			return os.NewSyscallError("sendto", err)
		}
	}
	return nil
}

func announcements(n Net) [][]byte {
	var frames [][]byte
	for _, ip := range n.IPs {
		if ip.Addr().Is4() {
			frames = append(frames, arpAnnouncement(n.MAC, ip.Addr()))
		} else {
			frames = append(frames, neighborAdvert(n.MAC, ip.Addr()))
		}
	}
	return frames
}

func frame(dst, src net.HardwareAddr, kind uint16) []byte {
	f := append(append([]byte{}, dst...), src...)
	return binary.BigEndian.AppendUint16(f, kind)
}

// arpAnnouncement is of RFC 5227, section 3: a request for one's own address.
func arpAnnouncement(mac net.HardwareAddr, ip netip.Addr) []byte {
	f := frame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac, typeARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths, request
	f = append(append(f, mac...), ip.AsSlice()...)
	return append(append(f, make([]byte, 6)...), ip.AsSlice()...)
}

// neighborAdvert is an unsolicited one to all nodes, RFC 4861, section 7.2.6.
func neighborAdvert(mac net.HardwareAddr, ip netip.Addr) []byte {
	allNodes := netip.MustParseAddr("ff02::1")
	icmp := append([]byte{neighAdv, 0, 0, 0, 0x20, 0, 0, 0}, ip.AsSlice()...) // flag: override
	icmp = append(append(icmp, 2, 1), mac...)                                 // option: target's MAC
	return icmpFrame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, ip, allNodes, icmp)
}

// icmpFrame wraps a message of ICMPv6 that is for one link, and writes its
// checksum.
func icmpFrame(dst, src net.HardwareAddr, from, to netip.Addr, icmp []byte) []byte {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp))), 0, 0, 0, protoICMPv6)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))

	f := frame(dst, src, typeIPv6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(f, protoICMPv6, 255)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	return append(f, icmp...)
}

// checksum is the Internet's, RFC 1071, of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
