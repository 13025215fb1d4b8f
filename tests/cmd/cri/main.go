// Command cri asks an engine's CRI services (containerd, CRI-O), as the kubelet
// does: one call, with its request and its answer as JSON.
//
//	cri SOCKET METHOD [REQUEST]     REQUEST is {} if left out
//
// METHOD is one of RuntimeService, or of ImageService; the fields are those of
// k8s.io/cri-api. Calls that answer with a stream are not supported. It ends with
// 1, and the engine's message on stderr, if the call fails.
//
// It is a module of its own: neither gRPC nor Kubernetes belongs to vzrun's own
// dependencies.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1" // registers the services
)

// patience is what a call may take; the suites' own limits are stricter.
const patience = 2 * time.Minute

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "usage: cri SOCKET METHOD [REQUEST]")
		os.Exit(2)
	}
	request := "{}"
	if len(os.Args) == 4 {
		request = os.Args[3]
	}
	answer, err := call(os.Args[1], os.Args[2], request)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", message(err))
		os.Exit(1)
	}
	fmt.Println(answer)
}

// message leaves out gRPC's own words around what the engine said.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return fmt.Sprintf("%s: %s", s.Code(), strings.TrimSpace(s.Message()))
	}
	return err.Error()
}

// call finds the method by its name and does it.
func call(socket, name, request string) (string, error) {
	method, err := find(name)
	if err != nil {
		return "", err
	}
	in, err := empty(method.Input())
	if err != nil {
		return "", err
	}
	out, err := empty(method.Output())
	if err != nil {
		return "", err
	}
	if err := protojson.Unmarshal([]byte(request), in); err != nil {
		return "", fmt.Errorf("the request is no %s: %w", method.Input().Name(), err)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if err := conn.Invoke(ctx, path, in, out); err != nil {
		return "", err
	}
	// Names as in the request; what is zero is shown, so that a test can ask for it.
	answer, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(out)
	return string(answer), err
}

// find looks a method up in both services.
func find(name string) (protoreflect.MethodDescriptor, error) {
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			return nil, err
		}
		method := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
		if method == nil {
			continue
		}
		if method.IsStreamingServer() {
			return nil, fmt.Errorf("%s answers with a stream", name)
		}
		return method, nil
	}
	return nil, fmt.Errorf("CRI has no method %q", name)
}

// empty makes a message of a type.
func empty(kind protoreflect.MessageDescriptor) (proto.Message, error) {
	found, err := protoregistry.GlobalTypes.FindMessageByName(kind.FullName())
	if err != nil {
		return nil, err
	}
	return found.New().Interface(), nil
}
