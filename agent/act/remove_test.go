package act_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/observed"
)

// stuckLogs are logs that cannot be removed while there is an error.
type stuckLogs struct {
	err     error
	removed []string
}

func (l *stuckLogs) Remove(_ context.Context, log string) error {
	l.removed = append(l.removed, log)
	return l.err
}

func TestAContainersFilesGoBeforeTheContainer(t *testing.T) {
	r, logs := fakecri.New(), &stuckLogs{err: errors.New("stuck")}
	a := act.New(act.Parts{Containers: r, Logs: logs}, act.Config{RuntimeTimeout: time.Minute, Log: slog.New(slog.DiscardHandler)})
	message := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(message, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := observed.Container{ID: "c", LogPath: "/logs/0.log", TerminationLog: message}
	err := a.RemoveContainer(t.Context(), &v1.Pod{}, c)
	if err == nil || !strings.Contains(err.Error(), "remove what container c left: stuck") || r.Calls() != nil {
		t.Errorf("%v, asked the runtime %v", err, r.Calls())
	}
	logs.err = nil
	if err := a.RemoveContainer(t.Context(), &v1.Pod{}, c); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(message); err == nil || !slices.Equal(logs.removed, []string{"/logs/0.log", "/logs/0.log"}) {
		t.Errorf("removed: %v, and the message: %v", logs.removed, err)
	}
	logs.err = errors.New("stuck")
	if err := a.RemoveContainer(t.Context(), &v1.Pod{}, observed.Container{ID: "logs nowhere"}); err != nil {
		t.Error(err)
	}
}
