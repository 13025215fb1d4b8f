package vnet

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// MaxAddresses is the number of addresses that Addresses returns at the most.
// A container's root can set as many as it likes.
const MaxAddresses = 64

// addressTimeout bounds one question to the kernel, which answers at once.
const addressTimeout = 2 * time.Second

// Addresses returns the addresses by which the network namespace of process pid
// can be reached from elsewhere: those of global scope, IPv4 first. There are
// none if that is the namespace of the calling thread. Nothing runs in the
// namespace: it is asked by netlink from outside.
func Addresses(pid int) ([]netip.Addr, error) {
	inner, err := netns.GetFromPath("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer inner.Close()
	host, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer host.Close()
	if inner.Equal(host) {
		return nil, nil
	}
	in, err := netlink.NewHandleAt(inner, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink in the namespace of process %d: %w", pid, err)
	}
	defer in.Close()
	if err := in.SetSocketTimeout(addressTimeout); err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retry(func() ([]netlink.Addr, error) { return in.AddrList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("addresses of process %d: %w", pid, err)
		}
		out = append(out, global(list)...)
	}
	return out[:min(len(out), MaxAddresses)], nil
}

// global picks the addresses that mean something to others.
func global(list []netlink.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if a.Scope != unix.RT_SCOPE_UNIVERSE || a.IPNet == nil {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLoopback() {
			out = append(out, ip.Unmap())
		}
	}
	return out
}
