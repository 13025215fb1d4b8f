package guest

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// maxUtmp bounds what is read of utmp(5). init's records come first: it writes
// them before anybody can log in.
const maxUtmp = 256 << 10

// Types of records, utmp(5).
const (
	utmpRunLevel = 1
	utmpDead     = 8
)

// utmpRecord is what counts here of a record.
type utmpRecord struct {
	kind int16
	pid  int32
	id   string
}

func utmpDirs() []string { return []string{"/run", "/var/run"} }

// sysvinit writes to utmp which run level it has entered, before the scripts of
// that level run, and when one of the processes of inittab(5) has ended, which
// those scripts are.
func (w *waiter) sysvinit() (Status, bool, error) {
	var utmp []byte
	var err error
	for _, dir := range utmpDirs() {
		if utmp, err = w.readFile(dir+"/utmp", maxUtmp); err == nil || !absent(err) {
			break
		}
	}
	if absent(err) {
		return Status{}, false, nil
	}
	if err != nil {
		return Status{}, false, err
	}
	tab, err := w.readFile("/etc/inittab", maxInittab)
	if err != nil {
		return Status{}, false, err
	}
	state := sysvState(parseUtmp(utmp), parseInittab(tab))
	if state == "running" {
		failed, err := w.openrcFailed() // OpenRC's scripts under sysvinit
		return degraded(failed), true, err
	}
	return Status{State: state}, state != "", nil
}

// parseUtmp reads records of struct utmp. They have 384 bytes where a 64-bit
// system shares the file with a 32-bit one, as on x86, else 400; the fields that
// count here are at the same places.
func parseUtmp(data []byte) []utmpRecord {
	size := 384
	if len(data)%size != 0 && len(data)%400 == 0 {
		size = 400
	}
	var all []utmpRecord
	for ; len(data) >= size; data = data[size:] {
		all = append(all, utmpRecord{
			kind: int16(binary.NativeEndian.Uint16(data)),
			pid:  int32(binary.NativeEndian.Uint32(data[4:])),
			id:   string(bytes.TrimRight(data[40:44], "\x00")),
		})
	}
	return all
}

// sysvState decides: "" while the boot goes on.
func sysvState(utmp []utmpRecord, tab []tabEntry) string {
	level := byte(0)
	dead := map[string]bool{}
	for _, r := range utmp {
		switch r.kind {
		case utmpRunLevel:
			level = byte(r.pid) // the level before is in the next byte
		case utmpDead:
			dead[r.id] = true
		}
	}
	switch level {
	case 0:
		return ""
	case '0', '6':
		return "stopping"
	case '1', 'S', 's':
		return "maintenance"
	}
	for _, e := range tab {
		// No level means each. Of a process with a "+" init keeps no record.
		inLevel := e.levels == "" || strings.IndexByte(e.levels, level) >= 0
		if e.action != "wait" || !inLevel || strings.HasPrefix(e.process, "+") {
			continue
		}
		if !dead[e.id[:min(len(e.id), 4)]] {
			return ""
		}
	}
	return "running"
}
