package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []**Conn{&a, &b} {
		if *c, err = NewConn(fds[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*c).Close() })
	}
	return a, b
}

func TestMessagesArriveInOrderWithTheirFiles(t *testing.T) {
	a, b := pair(t)
	const messages = 50
	dir := t.TempDir()
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := range messages {
			var fds []int
			for n := range i % (MaxFiles + 1) {
				f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d-%d", i, n)))
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				fds = append(fds, int(f.Fd()))
			}
			body, _ := json.Marshal(strings.Repeat("x", i*10_000)) // more than the socket's buffer
			if err := a.Write(Message{ID: uint64(i), Body: body}, fds...); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range messages {
		m, files, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != uint64(i) || len(m.Body) != i*10_000+2 || len(files) != i%(MaxFiles+1) {
			t.Fatalf("message %d: ID %d, %d bytes, %d files", i, m.ID, len(m.Body), len(files))
		}
		for n, f := range files {
			name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			if want := fmt.Sprintf("%d-%d", i, n); filepath.Base(name) != want {
				t.Errorf("file %s, %v, want %s", name, err, want)
			}
			f.Close()
		}
	}
	sending.Wait()
}

func TestAPeerThatHasGoneIsTheEnd(t *testing.T) {
	a, b := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Read(); err != io.EOF {
		t.Errorf("read: %v, want EOF", err)
	}
	if err := b.Write(Message{ID: 1}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	frame := func(size int, text string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(size))) + text
	}
	for _, c := range []struct{ name, frame, want string }{
		{"half a length", "\x00\x00", "unexpected EOF"},
		{"a length that nothing follows", frame(5, ""), "receive message of 5 bytes: unexpected EOF"},
		{"less than the length", frame(5, "{"), "receive message of 5 bytes: unexpected EOF"},
		{"more than the limit", frame(MaxMessage+1, ""), "message of 4194305 bytes: the limit is 4194304"},
		{"no JSON", frame(3, "abc"), "decode message: invalid character 'a' looking for beginning of value"},
		{"files that did not come", frame(11, `{"files":1}`), "message names 1 files, 0 came"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			if _, err := a.file.WriteString(c.frame); err != nil {
				t.Fatal(err)
			}
			a.Close()
			if _, _, err := b.Read(); err == nil || err.Error() != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
}

func TestFilesOfARefusedMessageAreClosed(t *testing.T) {
	a, b := pair(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	if _, err := a.sendmsg([]byte("\x00\x00\x00\x02{}"), unix.UnixRights(p[1])); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(p[1])
	if _, _, err := b.Read(); err == nil {
		t.Fatal("a file that the message does not name was taken")
	}
	if n, err := unix.Read(p[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the pipe is still open: %d, %v", n, err)
	}
}

func TestAMessageThatIsTooLargeIsNotSent(t *testing.T) {
	a, _ := pair(t)
	body, _ := json.Marshal(strings.Repeat("x", MaxMessage))
	if err := a.Write(Message{Method: MethodExec, Body: body}); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("error %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	good, err := encode(Message{ID: 1, Method: MethodRun, Body: json.RawMessage(`{"id":"c"}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x04null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < headerSize {
			return
		}
		m, err := decode(bytes.NewReader(data[headerSize:]), [headerSize]byte(data))
		if err != nil {
			return
		}
		frame, err := encode(m)
		if err != nil {
			t.Fatalf("decoded, but not to be encoded: %v", err)
		}
		again, err := decode(bytes.NewReader(frame[headerSize:]), [headerSize]byte(frame))
		if err != nil || again.ID != m.ID || again.Method != m.Method || again.Files != m.Files {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}
