// Matches two images: main MODEL.onnx LEFT RIGHT [FEATURES.yml]
// With a fourth argument the left image's keypoints and descriptors are written there.
#include <cstdio>
#include <opencv2/calib3d.hpp>
#include <opencv2/imgcodecs.hpp>

#include "d2feat.hpp"

int main(int count, char** arguments) {
    if (count < 4) return std::fprintf(stderr, "usage: %s MODEL LEFT RIGHT [FEATURES.yml]\n", arguments[0]), 2;
    const cv::Mat left = cv::imread(arguments[2]), right = cv::imread(arguments[3]);
    const cv::Ptr<cv::Feature2D> detector = d2feat::D2Feature::create(arguments[1], 2000);
    std::vector<cv::KeyPoint> keypoints1, keypoints2;
    cv::Mat descriptors1, descriptors2;
    detector->detectAndCompute(left, cv::noArray(), keypoints1, descriptors1);
    detector->detectAndCompute(right, cv::noArray(), keypoints2, descriptors2);

    std::vector<cv::DMatch> matches;
    cv::BFMatcher(detector->defaultNorm(), true).match(descriptors1, descriptors2, matches);
    std::vector<cv::Point2f> source, target;
    for (const cv::DMatch& match : matches) {
        source.push_back(keypoints1[match.queryIdx].pt);
        target.push_back(keypoints2[match.trainIdx].pt);
    }
    std::vector<uchar> inliers;
    cv::findHomography(source, target, cv::RANSAC, 3, inliers);
    std::printf("%zu and %zu keypoints, %zu matches, %d inliers\n", keypoints1.size(), keypoints2.size(),
                matches.size(), cv::countNonZero(inliers));

    if (count > 4) {
        cv::Mat rows;
        for (const cv::KeyPoint& one : keypoints1)
            rows.push_back(cv::Matx<float, 1, 6>(one.pt.x, one.pt.y, one.size, one.angle, one.response, one.octave));
        std::vector<cv::KeyPoint> given = keypoints1;
        given.emplace_back(-5.f, 3.f, 32.f);  // outside of the image: dropped
        cv::Mat again;
        detector->compute(left, given, again);
        cv::FileStorage file(arguments[4], cv::FileStorage::WRITE);
        file << "keypoints" << rows << "descriptors" << descriptors1 << "computed" << again;
    }
}
