package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// inBulk opens a stream in bulk from s to d.
func inBulk(t *testing.T, s, d *Session) (writer, reader *Stream) {
	t.Helper()
	accepted := make(chan error, 1)
	go func() {
		var err error
		reader, err = d.Accept()
		accepted <- err
	}()
	writer, err := s.OpenBulk("pages")
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	return writer, reader
}

// What goes in bulk arrives as it was, in whatever pieces it is written and read, with the
// words of the dialogue between.
func TestBulkBesideADialogue(t *testing.T) {
	for name, shape := range map[string]Shape{"plain": {}, "compressed": {Compression: Zstd}, "bounded": {Rate: 256 << 20}} {
		t.Run(name, func(t *testing.T) {
			s, d := shaped(t, shape, shape)
			dialogue(t, s, d, []string{"a", "word"})
			writer, reader := inBulk(t, s, d)
			random := rand.New(rand.NewPCG(1, 2))
			data := make([]byte, 5<<20)
			for i := range data {
				data[i] = byte(random.Uint32() >> 30)
			}
			written := make(chan error, 1)
			go func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+random.IntN(2*bulkSize))
					if _, err := writer.Write(rest[:n]); err != nil {
						written <- err
						return
					}
					rest = rest[n:]
				}
				written <- writer.CloseWrite()
			}()
			var got bytes.Buffer
			read := make(chan error, 1)
			go func() {
				sizes := rand.New(rand.NewPCG(3, 4))
				for {
					b := make([]byte, 1+sizes.IntN(3*bulkSize))
					n, err := reader.Read(b)
					got.Write(b[:n])
					if err != nil {
						read <- err
						return
					}
				}
			}()
			dialogue(t, s, d, []string{"more", "words"})
			if err := <-read; !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if err := <-written; err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%d bytes, or others than the %d that were written", got.Len(), len(data))
			}
			// The other way it is a stream like others.
			go reader.Write([]byte("thanks")) //nolint:errcheck // the reader tells
			word := make([]byte, 6)
			if _, err := io.ReadFull(writer, word); err != nil || string(word) != "thanks" {
				t.Errorf("%q, %v", word, err)
			}
		})
	}
}

func TestBulkDeadlines(t *testing.T) {
	s, d := pair(t)
	writer, reader := inBulk(t, s, d)
	for _, set := range []func(time.Time) error{reader.SetDeadline, reader.SetReadDeadline} {
		if err := set(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v after a deadline", err)
		}
		if err := set(time.Time{}); err != nil {
			t.Fatal(err)
		}
		// One that is set while it is waited for.
		time.AfterFunc(10*time.Millisecond, func() { set(time.Now().Add(10 * time.Millisecond)) }) //nolint:errcheck // the reader tells
		if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v in place of a deadline", err)
		}
	}
	if err := reader.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	go writer.Write([]byte("x")) //nolint:errcheck // the reader tells
	if n, err := reader.Read(make([]byte, 9)); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Whoever goes, the other one is not left waiting, and the connection goes on.
func TestEndsOfBulk(t *testing.T) {
	s, d := pair(t)
	writer, reader := inBulk(t, s, d)
	reader.Close()
	if _, err := writer.Write(make([]byte, 3*bulkSize)); err != nil {
		t.Errorf("to nobody: %v", err) // it is thrown away
	}
	if _, err := reader.Read(make([]byte, 1)); err == nil {
		t.Error("it was closed")
	}
	writer.Close()
	if _, err := writer.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v of one that was closed", err)
	}
	writer, reader = inBulk(t, s, d)
	ended := make(chan error, 1)
	go func() {
		_, err := reader.Read(make([]byte, 1))
		ended <- err
	}()
	writer.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("%v in place of the end", err)
	}
	writer, reader = inBulk(t, s, d)
	go func() {
		_, err := reader.Read(make([]byte, 1))
		ended <- err
	}()
	s.Close()
	if err := <-ended; err == nil {
		t.Error("the connection is gone")
	}
	if _, err := writer.Write([]byte("x")); err == nil {
		t.Error("likewise")
	}
}

// bulkFrame is one as it may come.
func bulkFrame(size uint32, data []byte) []byte {
	head := make([]byte, headSize)
	head[0] = bulkMark
	binary.BigEndian.PutUint32(head[4:], size)
	return append(head, data...)
}

func TestBulkThatMustNotBe(t *testing.T) {
	t.Run("two", func(t *testing.T) {
		s, d := pair(t)
		inBulk(t, s, d)
		go s.OpenBulk("pages") //nolint:errcheck // the other side tells
		if _, err := d.Accept(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%v of a second one", err)
		}
	})
	for name, c := range map[string]struct {
		frame []byte
		open  bool
	}{
		"to nobody": {bulkFrame(1, []byte("x")), false},
		"empty":     {bulkFrame(0, nil), true},
		"too long":  {bulkFrame(bulkSize+1, nil), true},
	} {
		t.Run(name, func(t *testing.T) {
			s, d := pair(t)
			if c.open {
				inBulk(t, s, d)
			}
			s.conn.writing.Lock()
			go func() {
				defer s.conn.writing.Unlock()
				s.conn.ReadWriteCloser.Write(c.frame) //nolint:errcheck // the other side tells
			}()
			select {
			case <-d.Lost():
			case <-time.After(20 * time.Second):
				t.Error("the connection goes on")
			}
		})
	}
}

// FuzzLink gives a link anything to read: what it passes on is what is there, without
// what is in bulk.
func FuzzLink(f *testing.F) {
	f.Add(append(bulkFrame(3, []byte("abc")), 2, 3, 0, 0, 0, 0, 0, 0))
	f.Add([]byte{2, 2, 5, 0, 1, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'})
	f.Fuzz(func(t *testing.T, data []byte) {
		l := &link{ReadWriteCloser: struct {
			io.Reader
			io.WriteCloser
		}{bytes.NewReader(data), nil}, failed: make(chan struct{})}
		k := newBulk()
		l.bulk.Store(k)
		var bulk bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.CopyBuffer(&bulk, struct{ io.Reader }{k}, make([]byte, 7)) //nolint:errcheck // the sum tells
		}()
		passed, err := io.ReadAll(l)
		k.finish(io.EOF)
		<-read
		if len(passed)+bulk.Len() > len(data) || err == nil && len(data) > 0 && len(passed)+bulk.Len() == 0 {
			t.Errorf("%d bytes and %d in bulk of %d, %v", len(passed), bulk.Len(), len(data), err)
		}
	})
}
