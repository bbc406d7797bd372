package image

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// withLogger makes the containerd packages log to l: they take their logger
// from the context, and it is a logrus one.
func withLogger(ctx context.Context, l *slog.Logger) context.Context {
	out := logrus.New()
	out.SetOutput(io.Discard)
	out.SetLevel(logrus.WarnLevel) // what they say below is about single HTTP requests
	out.AddHook(slogHook{l})
	return log.WithLogger(ctx, logrus.NewEntry(out))
}

type slogHook struct{ l *slog.Logger }

func (slogHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h slogHook) Fire(e *logrus.Entry) error {
	args := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		args = append(args, k, v)
	}
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	h.l.Log(e.Context, level, e.Message, args...)
	return nil
}
