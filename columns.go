package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/vzrun/vzrun/libvz"
)

// column is one of list's. Its value is for programs and for sorting: a
// string, a number, a list of addresses, or nil where it is not known.
type column struct {
	name, about string
	facts       libvz.Facts
	value       func(o *libvz.Overview) any
	text        func(value any) string // of a value that is not nil; nil = as it stands
}

func columns() []column {
	usage, network := libvz.Facts{Usage: true}, libvz.Facts{Network: true}
	return []column{
		{name: "id", about: "the container's id", value: func(o *libvz.Overview) any { return o.ID }},
		{name: "pid", about: "its first process, as the host counts", value: func(o *libvz.Overview) any { return unless(0, o.Pid) }},
		{name: "status", about: "created, running, paused or stopped", value: func(o *libvz.Overview) any { return o.Status }},
		{name: "guest", about: "kind of init of a whole operating system", value: func(o *libvz.Overview) any { return unless("", o.Guest) }},
		{name: "init", about: "what its init says: starting, running, degraded, ...", facts: libvz.Facts{Init: true}, value: func(o *libvz.Overview) any { return unless("", o.Init) }},
		{name: "hostname", about: "its host name now", facts: network, value: func(o *libvz.Overview) any { return unless("", o.Hostname) }},
		{name: "ip", about: "its addresses", facts: network, value: func(o *libvz.Overview) any { return addressesOf(o) }, text: joinAddresses},
		{name: "netns", about: "number of its network namespace", facts: network, value: func(o *libvz.Overview) any { return unless(0, o.NetworkNamespace) }},
		{name: "memory", about: "memory in use, without cache that can be dropped; bytes", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.Memory }), text: sizeText},
		{name: "memory_limit", about: "limit of memory; bytes", facts: usage, value: ofLoad(func(l *libvz.Load) any { return unless(0, l.MemoryLimit) }), text: sizeText},
		{name: "swap", about: "swap in use; bytes", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.Swap }), text: sizeText},
		{name: "cpu", about: "processor time used; seconds", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.CPU.Seconds() }), text: secondsText},
		{name: "cpus", about: "limit of processor time, in processors", facts: usage, value: ofLoad(func(l *libvz.Load) any { return unless(0, l.CPUs) })},
		{name: "tasks", about: "processes and threads", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.Tasks })},
		{name: "tasks_limit", about: "limit of them", facts: usage, value: ofLoad(func(l *libvz.Load) any { return unless(0, l.TasksLimit) })},
		{name: "read", about: "read from block devices; bytes", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.Read }), text: sizeText},
		{name: "written", about: "written to block devices; bytes", facts: usage, value: ofLoad(func(l *libvz.Load) any { return l.Written }), text: sizeText},
		{name: "os", about: "name of its operating system", facts: libvz.Facts{System: true}, value: func(o *libvz.Overview) any { return unless("", o.OS) }},
		{name: "uptime", about: "time since start or restore; seconds", value: func(o *libvz.Overview) any { return unless(0, o.Uptime.Seconds()) }, text: uptimeText},
		{name: "uuid", about: "container_uuid of its configuration", facts: libvz.Facts{UUID: true}, value: func(o *libvz.Overview) any { return unless("", o.UUID) }},
		{name: "bundle", about: "its bundle", value: func(o *libvz.Overview) any { return o.Bundle }},
		{name: "rootfs", about: "its root file system", value: func(o *libvz.Overview) any { return o.Rootfs }},
		{name: "created", about: "when it was created or restored", value: func(o *libvz.Overview) any { return o.Created.Format(time.RFC3339Nano) }},
		{name: "owner", about: "who created it", value: func(o *libvz.Overview) any { return unless("", o.Owner) }},
	}
}

// systemColumns are what --system shows.
const systemColumns = "id,status,init,hostname,ip,memory,cpu,tasks,uptime"

// unless returns nil in place of a value that says nothing.
func unless[T comparable](nothing, value T) any {
	if value == nothing {
		return nil
	}
	return value
}

func ofLoad(value func(*libvz.Load) any) func(*libvz.Overview) any {
	return func(o *libvz.Overview) any {
		if o.Load == nil {
			return nil
		}
		return value(o.Load)
	}
}

func addressesOf(o *libvz.Overview) any {
	if len(o.Addresses) == 0 {
		return nil
	}
	return o.Addresses
}

// chosenColumns understands --output.
func chosenColumns(output string, system, asJSON bool) ([]column, error) {
	known := columns()
	switch {
	case output == "all" || output == "" && asJSON:
		return known, nil
	case output == "" && system:
		output = systemColumns
	case output == "":
		output = "id,pid,status,bundle,created,owner"
	}
	var chosen []column
	for name := range strings.SplitSeq(output, ",") {
		col, err := columnNamed(known, "output", strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(chosen, func(c column) bool { return c.name == col.name }) {
			chosen = append(chosen, col)
		}
	}
	return chosen, nil
}

func columnNamed(known []column, flag, name string) (column, error) {
	i := slices.IndexFunc(known, func(c column) bool { return c.name == name })
	if i < 0 {
		return column{}, &usageError{msg: fmt.Sprintf("list: --%s: no column %q", flag, name), hint: "vzrun list --output help lists the columns"}
	}
	return known[i], nil
}

func printColumns(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 1, 2, ' ', 0)
	for _, c := range columns() {
		fmt.Fprintf(w, "%s\t%s\n", c.name, c.about)
	}
	return w.Flush()
}

func printTable(out io.Writer, columns []column, all []libvz.Overview, header bool) error {
	w := tabwriter.NewWriter(out, 0, 1, 3, ' ', 0)
	cells := make([]string, len(columns))
	line := func() { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	if header {
		for i, c := range columns {
			cells[i] = strings.ToUpper(c.name)
		}
		line()
	}
	for i := range all {
		for j, c := range columns {
			cells[j] = c.cell(c.value(&all[i]))
		}
		line()
	}
	return w.Flush()
}

func (c column) cell(value any) string {
	switch {
	case value == nil:
		return "-"
	case c.text != nil:
		return c.text(value)
	}
	return fmt.Sprint(value)
}

// columnObjects are the containers as JSON objects, with their keys in the
// order of the columns.
func columnObjects(columns []column, all []libvz.Overview) []columnObject {
	out := make([]columnObject, len(all))
	for i := range all {
		for _, c := range columns {
			out[i] = append(out[i], field{c.name, c.value(&all[i])})
		}
	}
	return out
}

type field struct {
	name  string
	value any
}

type columnObject []field

func (o columnObject) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", f.name, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// order is how a list is sorted; the zero value leaves it as it is, by id.
type order struct {
	by      column
	reverse bool
}

func parseOrder(s string) (order, error) {
	if s == "" {
		return order{}, nil
	}
	name, reverse := strings.CutPrefix(s, "-")
	col, err := columnNamed(columns(), "sort", name)
	return order{by: col, reverse: reverse}, err
}

func (r order) sort(all []libvz.Overview) {
	if r.by.value == nil {
		return
	}
	slices.SortStableFunc(all, func(a, b libvz.Overview) int {
		n := compareValues(r.by.value(&a), r.by.value(&b))
		if r.reverse {
			return -n
		}
		return n
	})
}

// compareValues puts what is not known first.
func compareValues(a, b any) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	if x, ok := a.([]netip.Addr); ok {
		y, _ := b.([]netip.Addr)
		return slices.CompareFunc(x, y, netip.Addr.Compare)
	}
	if x, ok := a.(string); ok {
		y, _ := b.(string)
		return cmp.Compare(x, y)
	}
	return cmp.Compare(numberOf(a), numberOf(b))
}

func numberOf(v any) float64 {
	switch n := v.(type) {
	case int:
		return float64(n)
	case uint64:
		return float64(n)
	case float64:
		return n
	}
	return 0
}

func joinAddresses(v any) string {
	list, _ := v.([]netip.Addr)
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

// sizeText is at most seven characters: "512MiB", "1.5GiB".
func sizeText(v any) string {
	return units.CustomSize("%.4g%s", numberOf(v), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

func secondsText(v any) string { return strconv.FormatFloat(numberOf(v), 'f', 2, 64) }

// uptimeText is 5s, 3m20s, 4h03m or 12d05h.
func uptimeText(v any) string {
	s := int64(numberOf(v))
	m, h := s/60, s/3600
	switch {
	case m == 0:
		return fmt.Sprintf("%ds", s)
	case h == 0:
		return fmt.Sprintf("%dm%02ds", m, s%60)
	case h < 24:
		return fmt.Sprintf("%dh%02dm", h, m%60)
	default:
		return fmt.Sprintf("%dd%02dh", h/24, h%24)
	}
}
