package p2p

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// quietConn is a socket whose reads and writes the runtime is not told of. They return at once, for the socket does not block, so there is
// nothing to tell; but to be told wakes the runtime's watchman (sysmon), if the process was idle just before. For some milliseconds that
// looks every 20 us then whether a system call lasts: in five processes on two cores it took a fifth of a core during a layer's call.
type quietConn struct {
	net.Conn

	socket      syscall.RawConn
	watchman    *watchman
	read, write transfer
}

// transfer is the system call of a read or of a write; each has one goroutine at a time.
type transfer struct {
	try   func(fd uintptr) (done bool)
	bytes []byte
	n     int
	errno syscall.Errno
}

// quiet returns c with quiet reads and writes, if it is a socket. Reads are for one goroutine at a time, and so are writes.
func quiet(c net.Conn, w *watchman) net.Conn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	socket, err := s.SyscallConn()
	if err != nil {
		return c
	}
	q := &quietConn{Conn: c, socket: socket, watchman: w}
	q.read.try = func(fd uintptr) bool { return q.read.once(syscall.SYS_READ, fd) }
	q.write.try = func(fd uintptr) bool { return q.write.once(syscall.SYS_WRITE, fd) }
	return q
}

// once makes the system call; false: the socket is not ready.
func (t *transfer) once(trap, fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.bytes))), uintptr(len(t.bytes)))
		if errno != syscall.EINTR {
			t.n, t.errno = int(n), errno
			return errno != syscall.EAGAIN
		}
	}
}

// over takes the buffer back and returns what came of it; err is the runtime's: the deadline, or the end of the connection.
func (t *transfer) over(op string, err error) (int, error) {
	t.bytes = nil
	if err != nil {
		return 0, err
	}
	if t.errno != 0 {
		return 0, &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, t.errno)}
	}
	return t.n, nil
}

func (c *quietConn) Read(b []byte) (int, error) {
	if !c.watchman.looks() {
		return c.Conn.Read(b)
	}
	c.read.bytes = b
	n, err := c.read.over("read", c.socket.Read(c.read.try))
	if n == 0 && err == nil && len(b) > 0 {
		return 0, io.EOF
	}
	return n, err
}

func (c *quietConn) Write(b []byte) (sent int, err error) {
	for sent < len(b) {
		c.write.bytes = b[sent:]
		n, err := c.write.over("write", c.socket.Write(c.write.try))
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}
