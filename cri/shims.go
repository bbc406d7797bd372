package cri

import (
	"context"

	"github.com/berth-io/berth/cri/server"
	"github.com/berth-io/berth/cri/shim"
)

// shims makes shim clients fit the server's interfaces.
type shims struct{}

func (shims) Start(ctx context.Context, s shim.Sandbox) (server.Shim, error) {
	c, err := shim.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return client{c}, nil
}

func (shims) Connect(ctx context.Context, dir string) (server.Shim, error) {
	c, err := shim.Connect(ctx, dir)
	if err != nil {
		return nil, err
	}
	return client{c}, nil
}

func (shims) AwaitOrphans(ctx context.Context, dir string) error { return shim.AwaitOrphans(ctx, dir) }

type client struct{ *shim.Client }

func (c client) Exec(ctx context.Context, p shim.Process, wantStdin bool) (server.Session, error) {
	e, err := c.Client.Exec(ctx, p, wantStdin)
	if err != nil {
		return nil, err
	}
	return e, nil
}
