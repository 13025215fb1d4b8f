package vnet

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestGlobal(t *testing.T) {
	list := []netlink.Addr{
		{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1)}, Scope: unix.RT_SCOPE_HOST},
		{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 2)}}, // somebody gave it the wrong scope
		{IPNet: &net.IPNet{IP: net.ParseIP("fe80::1")}, Scope: unix.RT_SCOPE_LINK},
		{},
		{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 1)}},
		{IPNet: &net.IPNet{IP: net.ParseIP("fd00::1")}},
	}
	if got := fmt.Sprint(global(list)); got != "[10.0.0.1 fd00::1]" {
		t.Errorf("got %s", got)
	}
}

func TestAddressesOfOurOwnNamespace(t *testing.T) {
	if got, err := Addresses(os.Getpid()); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Addresses(-1); err == nil {
		t.Error("no error for no process")
	}
}
