// What a compiler makes of this is in family.gz; family-symbols.gz is the same with symbols:
//
//   g++ -O1 -Wl,-z,pack-relative-relocs -o family family.cc      (GCC 12, binutils 2.40)
//   gzip -9n < family > family-symbols.gz; strip family; gzip -9n < family > family.gz
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace app {

struct Base {
  virtual ~Base() { puts("base"); }
  virtual int run(int) { return 1; }
};

struct Middle : Base {
  ~Middle() override { puts("middle"); }
  int run(int x) override { return x + 2; }
  virtual void more(std::string text) { puts(text.c_str()); }
};

struct Other {
  virtual int other() { return 7; }
};

struct Both : Middle, virtual Other {
  ~Both() override { puts("both"); }
  int other() override { return printf("other"); }
  int run(int x) override { return x * 3; }
};

namespace {
struct Hidden : Base {
  ~Hidden() override { puts("hidden"); }
  int run(int x) override { return x - 9; }
};
} // namespace

} // namespace app

int main(int argc, char**) {
  std::unique_ptr<app::Base> b;
  if (argc > 5) {
    b.reset(new app::Hidden);
  } else if (argc > 1) {
    b.reset(new app::Both);
  } else {
    b.reset(new app::Middle);
  }
  try {
    if (argc > 9) {
      throw std::runtime_error("x");
    }
  } catch (const std::exception& e) {
    puts(e.what());
  }
  return b->run(argc);
}
