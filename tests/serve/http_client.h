/// A small HTTP client over loopback: one connection a request, closed by the server.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

namespace quaver {

class Connection {
 public:
  explicit Connection(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{60, 0};  // a server that hangs fails the test
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    EXPECT_EQ(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  ~Connection() { disconnect(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void disconnect() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }
  void send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // the server has answered and closed
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  /// Some bytes; empty at the end.
  std::string receive() const {
    std::string bytes(4096, '\0');
    const ssize_t got = recv(socket_, bytes.data(), bytes.size(), 0);
    bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return bytes;
  }

 private:
  int socket_;
};

struct HttpResponse {
  int status = 0;
  std::string head, body;
};

inline std::string unchunked(std::string_view body) {
  std::string text;
  while (!body.empty()) {
    const std::size_t end = body.find("\r\n");
    if (end == std::string_view::npos) break;
    const std::size_t size = std::stoul(std::string(body.substr(0, end)), nullptr, 16);
    text += body.substr(end + 2, size);
    body.remove_prefix(std::min(body.size(), end + 4 + size));
  }
  return text;
}

inline HttpResponse parse_response(const std::string& all) {
  const std::size_t end = all.find("\r\n\r\n");
  if (end == std::string::npos || all.size() < 12) return {};
  HttpResponse response{std::stoi(all.substr(9, 3)), all.substr(0, end), all.substr(end + 4)};
  if (response.head.find("chunked") != std::string::npos) response.body = unchunked(response.body);
  return response;
}

inline std::string post_text(std::string_view path, const std::string& body) {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

/// Sends the bytes of a request and reads the whole answer.
inline HttpResponse http_exchange(int port, const std::string& request) {
  const Connection connection(port);
  connection.send(request);
  std::string all;
  for (std::string part = connection.receive(); !part.empty(); part = connection.receive()) all += part;
  return parse_response(all);
}

inline HttpResponse http_post(int port, const std::string& body, std::string_view path = "/v1/completions") {
  return http_exchange(port, post_text(path, body));
}

inline HttpResponse http_get(int port, std::string_view path) {
  return http_exchange(port, "GET " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

}  // namespace quaver
