// D2-Net in OpenCV 5 alone, without Python or ONNX Runtime: native ALIKED.onnx LEFT RIGHT WIDTH HEIGHT
// The model file is made by: python -m export --target opencv --contract aliked --size 640x480 ...
#include <cstdio>
#include <cstdlib>
#include <opencv2/core.hpp>
#include <opencv2/features.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int count, char** arguments) {
    if (count < 6) return std::fprintf(stderr, "usage: %s MODEL LEFT RIGHT WIDTH HEIGHT\n", arguments[0]), 2;
    cv::ALIKED::Params parameters;
    parameters.inputSize = cv::Size(std::atoi(arguments[4]), std::atoi(arguments[5]));
    const cv::Ptr<cv::Feature2D> detector = cv::ALIKED::create(arguments[1], parameters);

    std::vector<cv::KeyPoint> keypoints1, keypoints2;
    cv::Mat descriptors1, descriptors2;
    detector->detectAndCompute(cv::imread(arguments[2]), cv::noArray(), keypoints1, descriptors1);
    detector->detectAndCompute(cv::imread(arguments[3]), cv::noArray(), keypoints2, descriptors2);
    std::vector<cv::DMatch> matches;
    cv::BFMatcher(cv::NORM_L2, true).match(descriptors1, descriptors2, matches);
    std::printf("%zu and %zu keypoints, %zu matches\n", keypoints1.size(), keypoints2.size(), matches.size());
}
