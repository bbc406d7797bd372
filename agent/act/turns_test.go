package act

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhoIsFurthestOnIsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		leave := mustEnter(t, turns, startStage)
		var order []string
		for _, w := range []struct {
			name  string
			stage stage
		}{{"sandbox 1", sandboxStage}, {"create 1", createStage}, {"sandbox 2", sandboxStage}, {"start", startStage}, {"create 2", createStage}} {
			go func() {
				leave := mustEnter(t, turns, w.stage)
				order = append(order, w.name)
				leave()
			}()
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		want := []string{"start", "create 1", "create 2", "sandbox 1", "sandbox 2"}
		if !slices.Equal(order, want) {
			t.Errorf("the order is %q, want %q", order, want)
		}
		if turns.busy() {
			t.Error("busy when nobody has a turn")
		}
	})
}

func TestNoMoreThanAllowedAreAtOnceAndWhoGivesUpKeepsNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(2)
		first, second := mustEnter(t, turns, createStage), mustEnter(t, turns, createStage)
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error)
		go func() {
			_, err := turns.enter(ctx, startStage)
			gaveUp <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Fatalf("a turn that was given up: %v", err)
		}
		first()
		first() // once is enough
		mustEnter(t, turns, createStage)
		third := make(chan struct{})
		go func() {
			mustEnter(t, turns, createStage)
			close(third)
		}()
		synctest.Wait()
		select {
		case <-third:
			t.Fatal("three have a turn of two")
		default:
		}
		second()
		<-third
	})
}

func TestWhoGivesUpAsTheTurnComesHandsItOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		for range 200 {
			leave := mustEnter(t, turns, sandboxStage)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				if leave, err := turns.enter(ctx, sandboxStage); err == nil {
					leave()
				}
				close(done)
			}()
			synctest.Wait()
			go cancel()
			leave()
			<-done
		}
	})
}

func TestWhoIsSlowLosesTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		leave := mustEnter(t, turns, startStage)
		began := time.Now()
		other := mustEnter(t, turns, startStage)
		if waited := time.Since(began); waited != slow {
			t.Errorf("waited %v, want %v", waited, slow)
		}
		leave() // nobody's turn any more
		if turns.free != 0 {
			t.Errorf("%d turns are free while one is taken", turns.free)
		}
		other()
	})
}

func mustEnter(t *testing.T, turns *turns, s stage) (leave func()) {
	t.Helper()
	leave, err := turns.enter(t.Context(), s)
	if err != nil {
		t.Error(err)
	}
	return leave
}
