package podlog

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
)

// block is how much is read at a time while looking for the tail.
const block = 64 << 10

// tailStart finds where the last n lines of output begin: lines, not entries,
// so a line in parts counts once. It reads from the end, as much as it needs.
func tailStart(f *os.File, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find the end of the log: %w", err)
	}
	if n <= 0 {
		return size, nil
	}
	// lines counts ends of output lines before which something was printed;
	// the n-th from the end is behind the n+1st.
	var (
		carry []byte // the beginning of an entry whose end was in the block after
		lines int64
		end   = size
	)
	for end > 0 {
		start := max(0, end-block)
		buf := make([]byte, end-start, int(end-start)+len(carry))
		if _, err := f.ReadAt(buf, start); err != nil {
			return 0, fmt.Errorf("read the log backwards: %w", err)
		}
		buf = append(buf, carry...)
		for {
			i := bytes.LastIndexByte(bytes.TrimSuffix(buf, []byte{'\n'}), '\n')
			if i < 0 && start > 0 {
				break // its beginning is in the block before
			}
			line := bytes.TrimSuffix(buf[i+1:], []byte{'\n'})
			if e, err := parse(line); err != nil || !e.partial {
				if lines == n {
					return start + int64(len(buf)), nil
				}
				lines++
			}
			buf = buf[:i+1]
			if i < 0 {
				return 0, nil
			}
		}
		carry, end = bytes.Clone(buf), start
	}
	return 0, nil
}

// Tail returns the last lines of a log, at most maxLines and maxBytes, as the
// container wrote them.
func Tail(path string, maxLines, maxBytes int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	start, err := tailStart(f, maxLines)
	if err != nil {
		return "", err
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := copyAll(f, &printer{out: bufio.NewWriter(&out)}); err != nil {
		return "", err
	}
	text := out.Bytes()
	if over := int64(len(text)) - maxBytes; over > 0 {
		text = text[over:]
	}
	return string(text), nil
}
