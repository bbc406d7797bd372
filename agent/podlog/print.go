package podlog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// stampFormat has all nine digits always, as the kubelet's, so that columns line up.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// errLimit ends reading when Options.LimitBytes are written.
var errLimit = errors.New("limit reached")

// printer writes what a reader is to see of the entries it is given.
type printer struct {
	out        *bufio.Writer
	opts       Options
	left       int64  // of opts.LimitBytes
	middle     bool   // the last entry was a part of a line
	unreadable int    // entries left out since the last one that was not
	line       []byte // reused
}

func newPrinter(out io.Writer, opts Options) *printer {
	return &printer{out: bufio.NewWriterSize(out, 32<<10), opts: opts, left: opts.LimitBytes}
}

// print takes one line of the log file, without its newline.
func (p *printer) print(raw []byte) error {
	e, err := parse(raw)
	if err != nil {
		p.unreadable++
		return nil
	}
	if e.time.Before(p.opts.Since) {
		p.unreadable = 0 // and so were those before it
		return nil
	}
	if p.opts.Stream != "" && p.opts.Stream != e.stream {
		return nil
	}
	if err := p.noteUnreadable(); err != nil {
		return err
	}
	p.line = p.line[:0]
	if p.opts.Timestamps && !p.middle {
		p.line = append(e.time.AppendFormat(p.line, stampFormat), ' ')
	}
	p.line = append(p.line, e.content...)
	if !e.partial {
		p.line = append(p.line, '\n')
	}
	p.middle = e.partial
	return p.write(p.line)
}

// noteUnreadable says where entries are missing, and how many. What is in them
// is not for a terminal: a power failure leaves megabytes of zeros.
func (p *printer) noteUnreadable() error {
	if p.unreadable == 0 {
		return nil
	}
	p.line = p.line[:0]
	if p.middle {
		p.line = append(p.line, '\n')
	}
	p.line = append(p.line, "<unreadable log entries left out: "...)
	p.line = strconv.AppendInt(p.line, int64(p.unreadable), 10)
	p.line = append(p.line, ">\n"...)
	p.middle, p.unreadable = false, 0
	return p.write(p.line)
}

func (p *printer) write(text []byte) error {
	limited := p.opts.LimitBytes > 0
	if limited && int64(len(text)) > p.left {
		text = text[:p.left]
	}
	if _, err := p.out.Write(text); err != nil {
		return fmt.Errorf("send the log: %w", err)
	}
	if p.left -= int64(len(text)); limited && p.left <= 0 {
		return errLimit
	}
	return nil
}

// flush sends what has been printed; err is how printing ended.
func (p *printer) flush(err error) error {
	if err == nil {
		err = p.noteUnreadable()
	}
	if flushErr := p.out.Flush(); flushErr != nil && (err == nil || errors.Is(err, errLimit)) {
		return fmt.Errorf("send the log: %w", flushErr)
	}
	return err
}
