package main

import (
	"fmt"
	"net"
	"os"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"github.com/highwater-envoy/highwater/extproc"
)

// noop is the ext_proc server that most people would write, with the settings of ours: each message
// is let pass.
type noop struct {
	extprocv3.UnimplementedExternalProcessorServer
}

func (noop) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // both are how streams end
		}
		a := &extprocv3.ProcessingResponse{}
		switch r.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			a.Response = &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			a.Response = &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}
		case *extprocv3.ProcessingRequest_ResponseTrailers:
			a.Response = &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}
		}
		if err := s.Send(a); err != nil {
			return err
		}
	}
}

// serveNoop runs it until its standard input ends, and says where it listens.
func serveNoop() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer(extproc.Settings()...)
	extprocv3.RegisterExternalProcessorServer(s, noop{})
	fmt.Println(l.Addr())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		s.Stop()
	}()
	return s.Serve(l)
}
