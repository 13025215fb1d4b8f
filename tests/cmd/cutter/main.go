// Command cutter stands between the two sides of a migration and ends their
// connection at a chosen message:
//
//	cutter LISTEN TARGET MODE KIND
//
// LISTEN and TARGET are paths of unix sockets. MODE is before (the message KIND
// does not arrive), after (it is the last that does), or hold (it does not
// arrive, and nothing more does, while the connection stays): then "holding" is
// printed. With garbage, rubbish arrives in place of the message. It serves one
// connection.
//
// In mode flaky, KIND is KIND:TIMES:BYTES:SECONDS. The connection is cut when so many
// bytes have gone from LISTEN to TARGET after the source's message KIND, and for so
// many seconds nobody listens; with -KIND it is cut before that message of the
// destination. Then it serves the next one, which ends likewise, without a
// message, and so on TIMES times; those that follow are left alone.
//
// Two modes are no proxies: foreign says something else than a vzrun would to who
// comes to LISTEN, and noise does so to TARGET.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: cutter LISTEN TARGET before|after|hold|garbage|flaky|foreign|noise KIND")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "cutter:", err)
		os.Exit(1)
	}
}

// noise is what no vzrun says.
func noise(conn net.Conn) error {
	defer conn.Close()
	_, err := conn.Write(bytes.Repeat([]byte("SSH-2.0-OpenSSH_9.2p1\r\n\x00\xff"), 4096))
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil // the other side has heard enough
	}
	return err
}

func serve(listen, target, mode, kind string) error {
	if mode == "noise" {
		conn, err := net.Dial("unix", target)
		if err != nil {
			return err
		}
		return noise(conn)
	}
	if mode == "flaky" {
		return flaky(listen, target, kind)
	}
	l, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	from, err := l.Accept()
	if err != nil {
		return err
	}
	if mode == "foreign" {
		return noise(from)
	}
	to, err := net.Dial("unix", target)
	if err != nil {
		return err
	}
	var once sync.Once
	ended := make(chan error)
	end := func(err error) { once.Do(func() { go func() { ended <- err }() }) }
	// The control stream is the first one; each direction carries half of it.
	go func() { end(forward(to, from, mode, kind)) }()
	go func() { end(forward(from, to, mode, kind)) }()
	err = <-ended
	from.Close()
	to.Close()
	return err
}

// flaky serves one connection after the other.
func flaky(listen, target, plan string) error {
	var times, bytes, seconds int
	kind, rest, _ := strings.Cut(plan, ":")
	if _, err := fmt.Sscanf(rest, "%d:%d:%d", &times, &bytes, &seconds); err != nil {
		return err
	}
	for ; ; times-- {
		l, err := net.Listen("unix", listen)
		if err != nil {
			return err
		}
		fmt.Println("listening")
		from, err := l.Accept()
		if err != nil {
			return err
		}
		l.Close()
		to, err := net.Dial("unix", target)
		if err != nil {
			return err
		}
		left := &meter{left: math.MaxInt}
		if times > 0 && kind == "" {
			left.begin(bytes)
		}
		ended := make(chan error, 2)
		go func() { ended <- forth(to, from, kind, left, bytes) }()
		go func() { ended <- back(from, to, kind) }()
		err = <-ended
		from.Close()
		to.Close()
		<-ended
		if !errors.Is(err, errSpent) {
			return nil
		}
		fmt.Println("cut")
		kind = ""
		time.Sleep(time.Duration(seconds) * time.Second)
	}
}

// forth copies from the source, on a meter as soon as a message has passed.
func forth(to io.Writer, from io.Reader, kind string, left *meter, bytes int) error {
	if kind != "" && !strings.HasPrefix(kind, "-") {
		if err := forward(to, from, "tell", kind); err != nil {
			return err
		}
		left.begin(bytes)
	}
	_, err := io.Copy(to, io.TeeReader(from, left))
	return err
}

// back copies from the destination; with -KIND up to a message.
func back(to io.Writer, from io.Reader, kind string) error {
	if name, before := strings.CutPrefix(kind, "-"); before {
		if err := forward(to, from, "before", name); err != nil {
			return err
		}
		return errSpent
	}
	_, err := io.Copy(to, from)
	return err
}

// errSpent is the error of a meter on which nothing is left.
var errSpent = errors.New("so many bytes have gone")

// meter fails when more bytes are written than are left.
type meter struct {
	mu   sync.Mutex
	left int
}

func (m *meter) begin(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = bytes
}

func (m *meter) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(b) > m.left {
		return 0, errSpent
	}
	m.left -= len(b)
	return len(b), nil
}

// forward copies frames of smux (version 2: version, command, length and stream,
// 1, 1, 2 and 4 bytes, the lowest first), after the greeting's line.
func forward(to io.Writer, from io.Reader, mode, kind string) error {
	var b [1]byte
	for b[0] != '\n' {
		if _, err := io.ReadFull(from, b[:]); err != nil {
			return quiet(err)
		}
		if _, err := to.Write(b[:]); err != nil {
			return quiet(err)
		}
	}
	const headerSize, push = 8, 2
	var control bytes.Buffer
	stream, header := uint32(0), make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			return quiet(err)
		}
		data := make([]byte, binary.LittleEndian.Uint16(header[2:]))
		if _, err := io.ReadFull(from, data); err != nil {
			return quiet(err)
		}
		id := binary.LittleEndian.Uint32(header[4:])
		found := false
		if header[1] == push && (stream == 0 || stream == id) {
			stream = id
			control.Write(data)
			found = seen(&control, kind)
		}
		if found && mode == "garbage" {
			for i := range data {
				data[i] ^= 0xa5
			}
		}
		if !found || mode == "after" || mode == "garbage" || mode == "tell" {
			if _, err := to.Write(append(bytes.Clone(header), data...)); err != nil {
				return quiet(err)
			}
		}
		if found && mode == "hold" {
			fmt.Println("holding")
			select {}
		}
		if found && mode == "tell" {
			return nil
		}
		if found && mode != "garbage" {
			fmt.Println("cut")
			return nil
		}
	}
}

// seen takes whole messages from the control stream and looks for one of a kind.
func seen(control *bytes.Buffer, kind string) bool {
	const lengthSize = 4
	for control.Len() >= lengthSize {
		n := int(binary.BigEndian.Uint32(control.Bytes()))
		if control.Len() < lengthSize+n {
			return false
		}
		control.Next(lengthSize)
		var m struct {
			Kind string `json:"kind"`
		}
		if json.Unmarshal(control.Next(n), &m) == nil && m.Kind == kind {
			return true
		}
	}
	return false
}

// quiet takes the end of a connection for what it is.
func quiet(error) error { return nil }
